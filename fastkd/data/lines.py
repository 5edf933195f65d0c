"""Lines of UTF-8 text, in order and without loss."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from fastkd.errors import InputError
from fastkd.files import Naming, whole_file, writable

LONGEST = 1 << 20  # bytes of a line; cutting into pieces takes some fifty times as many


def opened(path: str | Path) -> BinaryIO:
    """A file for reading, unpacked where its name ends in `.gz`."""
    if str(path).endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


@contextlib.contextmanager
def opened_input(path: str | None, standard: BinaryIO | None) -> Iterator[tuple[BinaryIO, str]]:
    """The file at `path`, plain or gzip, or standard input; and what a complaint calls it."""
    if path is None:
        if standard is None:
            raise InputError("standard input: closed; expected lines there, or --input FILE")
        yield standard, "standard input"
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        yield file, path


@contextlib.contextmanager
def opened_output(path: str | None, standard: BinaryIO | None) -> Iterator[BinaryIO]:
    """The file at `path`, which appears when all of it is written, or standard output.

    It is packed where its name ends in `.gz`, the same bytes for the same content.
    """
    if path is None:
        if standard is None:
            raise InputError("standard output: closed; expected it open, or --output FILE")
        yield cast(BinaryIO, Naming(standard, Path("standard output")))
        return
    target = Path(path)
    with contextlib.ExitStack() as stack:
        with writable(target):
            device = target.exists() and not target.is_file()
            if device:
                naming = Naming(open(target, "wb"), target)  # noqa: SIM115
                file = cast(BinaryIO, stack.enter_context(contextlib.closing(naming)))
            else:
                file = stack.enter_context(whole_file(target))
        if target.suffix == ".gz":
            file = cast(BinaryIO, stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0)))
        yield file


def _raw_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines with their ends; no more than `LONGEST` bytes of a line are ever held."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise InputError(
                f"{name}: line {number:,} has more than {LONGEST:,} bytes;"
                " expected one sentence a line"
            )
        yield line


def decoded_lines(file: BinaryIO, name: str, invalid: str = "refuse") -> Iterator[str]:
    """Text of each line, without its end; only a line feed ends a line.

    invalid: what becomes of bytes that are not UTF-8: "refuse", or "replace" by U+FFFD

    Raises InputError where the file cannot be read, a line is longer than `LONGEST`, or is not
    UTF-8 and refused.
    """
    errors = "replace" if invalid == "replace" else "strict"
    number = 0
    try:
        for number, line in enumerate(_raw_lines(file, name), start=1):
            if number <= 3 and invalid == "refuse":
                _refuse_wide(line, name)
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
            yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: line {number:,} is not UTF-8 (byte {error.start + 1} of the line)"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error


def _refuse_wide(line: bytes, name: str) -> None:
    """InputError for UTF-16 and UTF-32, whose bytes may all be UTF-8 too where there is no mark."""
    nulls = line.count(0)
    if line[:2] in (b"\xff\xfe", b"\xfe\xff") or nulls > len(line) // 4:
        raise InputError(
            f"{name}: not UTF-8 but, by its mark or null bytes, UTF-16 or UTF-32; expected UTF-8"
        )


def count_lines(path: str | Path) -> int | None:
    """Lines of a file, plain or gzip; None of what can be read only once, as a pipe."""
    if not Path(path).is_file():
        return None
    with opened(path) as file:
        try:
            return sum(1 for _ in file)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
