"""Files that are on the disk whole or not at all, whatever ends the process or the machine."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Writes or replaces a file: a temporary one beside it is synced and renamed."""
    partial = path.with_name(f".{path.name}.tmp")
    with named(path):
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Names the file in errors that do not, as a full disk's."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
