"""Standard streams: closed, in an encoding that lacks what is said, or left by their readers."""

import contextlib
import errno
import io
import os
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
    """A text stream that drops what its reader, who has left, takes no more.

    What is written to its `buffer` fails as ever: whoever writes there has nothing else to do.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

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
            if error.errno != errno.EPIPE:
                raise
            drop_unwritten(self._stream)


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
            stack.enter_context(contextlib.redirect_stdout(cast(TextIO, Enduring(sys.stdout))))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(cast(TextIO, Enduring(sys.stderr))))
        yield
