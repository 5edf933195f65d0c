"""Files and folders that appear whole or not at all, whatever ends the process or the machine.

What is written goes to a temporary name beside its target, is waited for until the disk has it, and
takes the target's name last: a file by `write_file` or `whole_file`, a folder by `replaced_folder`.
Temporary names end in `.partial`. The process that writes one holds a lock on it, so that the next
writer, or `clear_leftovers`, tells what a killed process has left from another's work.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastkd.errors import InputError
from fastkd.reading import expect_file

_UNSYNCABLE = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of disks that may take it later
_PARTIAL = ".partial"
_LONGEST = 200  # bytes of the target's name in a temporary one; file systems end at 255
_AT_CURRENT_FOLDER, _EXCHANGE = -100, 2  # of Linux's renameat2


def write_file(path: Path, content: bytes) -> None:
    """Writes or replaces a file."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends without an error.

    Raises OSError where `path`, or what it links to, is a FIFO or a device.
    """
    with contextlib.ExitStack() as stack:
        with named(path):
            target = path.resolve()
            expect_file(target)
            partial = stack.enter_context(_partial(target, lambda new: open(new, "xb").close()))
            opened = Naming(open(partial, "wb"), path)  # noqa: SIM115
        with contextlib.closing(opened):
            yield cast(BinaryIO, opened)
            opened.flush()
            with named(path):
                os.fsync(opened.fileno())
        with named(path):
            partial.rename(target)
            sync(target.parent)


@contextlib.contextmanager
def replaced_folder(folder: Path, holds: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` when the block ends without an error.

    holds: the files that an earlier one may hold, which is replaced then; paths within it, or
        patterns of them such as `*.safetensors`

    Raises InputError where `folder` holds anything else, which is somebody's, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writable(folder):
            target = folder.resolve()
            refuse_foreign(folder, holds)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(_partial(target, Path.mkdir))
        with named(folder):
            yield partial
            sync_tree(partial)
            refuse_foreign(folder, holds)  # put there meanwhile
            _put_in_place(partial, target)


@contextlib.contextmanager
def temporary_folder(place: Path, name: str) -> Iterator[Path]:
    """A folder in `place`, this user's alone, until the block ends; what is left of others goes."""
    with _partial(place / name, lambda new: new.mkdir(0o700)) as partial:
        yield partial


def refuse_foreign(folder: Path, holds: Collection[str]) -> None:
    """InputError where `folder` is there and holds a file that none of `holds` names."""
    foreign = foreign_file(folder, holds) if folder.exists() else None
    if foreign:
        raise InputError(
            f"{folder}: would be replaced, but {foreign} in it is something else;"
            " expected a new or an empty folder"
        )


def foreign_file(folder: Path, holds: Collection[str]) -> str | None:
    """A file in `folder`, or below, that none of `holds` names; OSError where it is no folder."""
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        known = any(fnmatchcase(name, pattern) for pattern in holds)
        if not known and (path.is_symlink() or not path.is_dir()):
            return name
    return None


def drop_folder(folder: Path) -> None:
    """Deletes a folder that is never seen half-deleted."""
    doomed = _temporary_name(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Deletes what killed processes left in `folder` on the way to `name`, or to any name."""
    pattern = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{pattern}.*{_PARTIAL}"):
        with contextlib.suppress(OSError), _locked(path):
            _delete(path)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk; some file systems do without for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCABLE or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until a folder and all that is in it are on the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Tells a path that cannot be written, an InputError, from a disk that may take it later."""
    try:
        yield
    except OSError as error:
        if error.errno in _TRANSIENT:
            error.filename = error.filename or str(path)
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


class Naming:
    """A file that is written to: its own errors name it, others of the block that writes do not."""

    def __init__(self, file: BinaryIO, name: Path) -> None:
        self._file, self._name = file, name

    def write(self, content: bytes) -> int:
        with named(self._name):
            return self._file.write(content)

    def writelines(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with named(self._name):
            self._file.flush()

    def close(self) -> None:
        with named(self._name):
            self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def _partial(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new temporary file or folder, locked; deleted if it is still there at the end.

    Errors that name it, or what is in it, name the target in its place.
    """
    clear_leftovers(target.parent, _start_of(target))
    with contextlib.ExitStack() as stack:
        while True:
            partial = _temporary_name(target)
            stack.enter_context(_called(partial, target))
            make(partial)
            stack.callback(_delete, partial)
            try:
                stack.enter_context(_locked(partial))
            except (BlockingIOError, FileNotFoundError):
                continue  # taken for a leftover just before it was locked
            except OSError:
                pass  # a file system without locks: its leftovers stay
            break
        yield partial


@contextlib.contextmanager
def _called(partial: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            error.filename = os.fsdecode(error.filename).replace(str(partial), str(target))
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file or folder; OSError where another process does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(descriptor)


def _start_of(target: Path) -> str:
    return os.fsdecode(os.fsencode(target.name)[:_LONGEST])


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{_start_of(target)}.{secrets.token_hex(4)}{_PARTIAL}")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; one that is there is deleted after that."""
    doomed = new
    try:
        new.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchanged(new, folder):
            doomed = _temporary_name(folder)
            folder.rename(doomed)
            new.rename(folder)
    sync(folder.parent)
    if doomed.exists():
        _delete(doomed)


def _exchanged(one: Path, other: Path) -> bool:
    """Gives each of two paths the other's name at once; False where the system cannot."""
    call = _renameat2()
    if call is None:
        return False
    here, names = _AT_CURRENT_FOLDER, (os.fsencode(one), os.fsencode(other))
    return call(here, names[0], here, names[1], _EXCHANGE) == 0


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
