"""Lines of a stream, in order and without loss: what a filter reads."""

import contextlib
import gzip
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from fastkd.errors import InputError


@contextlib.contextmanager
def opened_input(path: str | None, default: BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The file at `path`, plain or gzip, or `default`, and what a complaint calls it."""
    if path is None:
        yield default, "standard input"
        return
    opened = gzip.open if path.endswith(".gz") else open
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened(path, "rb"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        yield file, path  # type: ignore[misc]


def decoded_lines(file: Iterable[bytes], name: str, invalid: str = "refuse") -> Iterator[str]:
    """Text of each line, ended by a line feed only; `invalid` bytes: "refuse" or "replace"."""
    try:
        for number, line in enumerate(file, start=1):
            yield _decoded(line.removesuffix(b"\n").removesuffix(b"\r"), name, number, invalid)
    except (EOFError, OSError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from None


def _decoded(line: bytes, name: str, number: int, invalid: str) -> str:
    try:
        return line.decode("utf-8", "replace" if invalid == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: line {number:,} is not UTF-8 (byte {error.start + 1} of the line);"
            " --invalid replace accepts it"
        ) from None
