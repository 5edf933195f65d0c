"""Parallel text: `<prefix>.<language>` or `<prefix>.<language>.gz`, one UTF-8 sentence a line."""

import contextlib
import gzip
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from fastkd.data.lines import decoded_lines
from fastkd.errors import InputError
from fastkd.reading import open_file

Item = TypeVar("Item")


def text_file(prefix: str | Path, language: str) -> Path:
    """The file of one side: the plain one, or else the gzip one.

    Raises:
        InputError: neither is there.
    """
    plain = Path(f"{prefix}.{language}")
    packed = Path(f"{prefix}.{language}.gz")
    for path in (plain, packed):
        if path.is_file():
            return path
    raise InputError(f"{plain}: no such file, nor {packed.name}; expected one sentence per line")


def read_lines(path: str | Path) -> Iterator[str]:
    """Lines of a plain or gzip file, without their ends; only a line feed ends a line.

    Raises:
        InputError: the file cannot be read, or a line is not UTF-8.
    """
    with contextlib.ExitStack() as stack:
        try:  # no FIFO, which might be waited for
            file: BinaryIO = stack.enter_context(open_file(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        if str(path).endswith(".gz"):
            file = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
        yield from decoded_lines(file, str(path))


def read_pairs(source: str | Path, target: str | Path) -> Iterator[tuple[str, str]]:
    """Line n of `source` with line n of `target`.

    Raises:
        InputError: as `read_lines`, or the files have no lines or different numbers of them.
    """
    source_lines, target_lines = read_lines(source), read_lines(target)
    count = 0
    for left, right in itertools.zip_longest(source_lines, target_lines):
        if left is None or right is None:
            more = 1 + sum(1 for _ in itertools.chain(source_lines, target_lines))
            counts = (count, count + more) if left is None else (count + more, count)
            raise InputError(
                f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}; "
                "expected the same number, line n translating line n"
            )
        count += 1
        yield left, right
    if count == 0:
        raise InputError(f"{source} and {target} are empty; expected one sentence per line")


def count_pairs(source: str | Path, target: str | Path) -> int:
    """Number of pairs; reads both files once and raises what `read_pairs` raises."""
    return sum(1 for _ in read_pairs(source, target))


def sample_evenly(items: Iterable[Item], total: int, wanted: int) -> Iterator[Item]:
    """`wanted` of `total` items, spread evenly over them; all of them where `wanted >= total`."""
    wanted = min(wanted, total)
    for index, item in enumerate(items):
        if index * wanted // total != (index + 1) * wanted // total:
            yield item
