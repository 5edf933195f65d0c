"""Standard streams: closed, in an encoding that lacks what is said, or left by their readers."""

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


def hold_streams() -> None:
    """Gives a closed stream the null device, and text that its encoding lacks another look.

    Else the next file that is opened takes its number, and what a library says on standard error is
    written into a checkpoint. `sys.stdin` and `sys.stdout` stay None, so that a verb that needs
    them can say so.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        with contextlib.suppress(io.UnsupportedOperation):
            sys.stdout.reconfigure(errors="backslashreplace")


class Enduring:
    """A text stream that drops what its reader or its terminal, which is gone, takes no more.

    What is written to its `buffer` fails as ever: whoever writes there has nothing else to do.
    Errors name the stream as `name`.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._left(error):
                error.filename = error.filename or self._name
                raise
            drop_unwritten(self._stream)

    def _left(self, error: OSError) -> bool:
        """Whether a pipe's reader has left, or the terminal was hung up.

        A terminal that is gone is none to `isatty` any more, but still a device; on a disk the same
        error is a fault of that.
        """
        if error.errno != errno.EIO:
            return error.errno == errno.EPIPE
        with contextlib.suppress(OSError):  # no file at all
            return stat.S_ISCHR(os.fstat(self._stream.fileno()).st_mode)
        return False


def drop_unwritten(stream: TextIO) -> None:
    """Forgets what a stream could not write, and whatever it is given from now on."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def enduring() -> Iterator[None]:
    """Inside, `print` and bars go on in silence when nobody reads them any more."""
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:
            out = Enduring(sys.stdout, "standard output")
            stack.enter_context(contextlib.redirect_stdout(cast(TextIO, out)))
        if sys.stderr is not None:
            error = Enduring(sys.stderr, "standard error")
            stack.enter_context(contextlib.redirect_stderr(cast(TextIO, error)))
        yield
