"""That one process at a time trains a run, and that the folder stays its own meanwhile."""

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fastkd.errors import InputError, RunFailed
from fastkd.files import writable

LOGGER = logging.getLogger(__name__)
# What file systems without locks answer; for ENOSYS FileLock has a way of its own.
_LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def only_one(file: Path, place: Path) -> Iterator[None]:
    """Timeout where another process is in such a block.

    file: the lock; place: what is written, as a warning names it
    """
    lock = FileLock(file, timeout=0)
    _acquire(lock, place)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, place: Path) -> None:
    """Timeout where another process has it; a file system without locks does without."""
    try:
        with warnings.catch_warnings(action="ignore"):
            lock.acquire()
    except OSError as error:
        if error.errno not in _LOCKLESS:
            raise
        LOGGER.warning(
            "%s: cannot be locked (%s); expected no other process to write there",
            *(place, error.strerror),
        )


class RunLock:
    """Of a run's folder; it ends with the process, whatever ends that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / ".lock"
        self._lock = FileLock(self._file, timeout=0)
        # The folder, which being open keeps its inode from becoming another's, and the lock.
        self._taken: tuple[int, os.stat_result] | None = None

    def take(self) -> None:
        """Makes the folder where there is none; InputError where another process has it."""
        with writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                _acquire(self._lock, self.folder)
            except Timeout:
                raise InputError(
                    f"{self.folder}: another process trains this run; wait for it, or give this"
                    " config another run folder"
                ) from None
            if self._taken is None:
                held = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                self._taken = held, os.stat(self._file)

    def release(self) -> None:
        if self._taken is not None:
            os.close(self._taken[0])
        self._taken = None
        self._lock.release()

    def check(self) -> None:
        """RunFailed where the folder is another than was taken, or was begun anew.

        A lock that was deleted is taken again, unless another process was faster.
        """
        if self._taken is None:
            return
        held, lock = self._taken
        if _is(self.folder, os.fstat(held)) and (_is(self._file, lock) or self._retaken(held)):
            return
        raise RunFailed(
            f"{self.folder}: was deleted, moved or replaced while it was trained, or another"
            " process trains it by now; nothing more is written there"
        )

    def _retaken(self, held: int) -> bool:
        """Whether no lock was there any more, and one is taken; one that is there is another's."""
        try:
            self._file.touch(exist_ok=False)
            self._lock.release()
            _acquire(self._lock, self.folder)
        except (FileExistsError, Timeout):
            return False
        self._taken = held, os.stat(self._file)
        return True


def _is(path: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), known)
    except FileNotFoundError:
        return False
