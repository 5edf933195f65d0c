"""Files and folders that appear whole or not at all, whatever ends the process or the machine."""

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from fastkd.errors import InputError

_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of disks that may take it later


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
def replaced_folder(folder: Path, holds: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` when the block ends without an error.

    holds: the files, as paths within it, that an earlier one may hold, which is replaced then

    Raises InputError where `folder` holds anything else, which is somebody's, or cannot be written.
    """
    target = folder.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with writable(folder):
        foreign = _first_but(holds, target) if target.exists() else None
        if foreign:
            raise InputError(
                f"{folder}: would be replaced, but {foreign} in it is something else;"
                " expected a new or an empty folder"
            )
        partial.mkdir(parents=True)
    try:
        yield partial
        put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _first_but(known: Collection[str], folder: Path) -> str | None:
    """A file in `folder`, or below, that is not `known`."""
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            return name
    return None


def put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; one that is there is deleted after that."""
    doomed = _set_aside(folder)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def drop_folder(folder: Path) -> None:
    """Deletes a folder that is never seen half-deleted."""
    shutil.rmtree(_set_aside(folder), ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    return doomed


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Tells a path that cannot be written, an InputError, from a disk that may take it later."""
    try:
        yield
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Names the file in errors that do not, as a full disk's."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
