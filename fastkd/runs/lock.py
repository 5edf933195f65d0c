"""That one process at a time trains a run, and that the folder stays its own meanwhile."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from fastkd.errors import InputError, RunFailed
from fastkd.files import writable


class RunLock:
    """Of a run's folder; it ends with the process, whatever ends that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._taken: tuple[os.stat_result, os.stat_result] | None = None  # the folder, the lock

    def take(self) -> None:
        """Makes the folder where there is none; InputError where another process has it."""
        with writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._acquire()
            except Timeout:
                raise InputError(
                    f"{self.folder}: another process trains this run; wait for it, or give this"
                    " config another run folder"
                ) from None

    def release(self) -> None:
        self._taken = None
        self._lock.release()

    def check(self) -> None:
        """RunFailed where the folder is another than was taken, as one that was begun anew.

        A lock that was deleted is taken again, unless another process was faster.
        """
        if self._taken is None:
            return
        folder, lock = self._taken
        if _is(self.folder, folder):
            if _is(self.folder / ".lock", lock):
                return
            self._lock.release()
            try:
                self._acquire()
                return
            except Timeout:
                pass
        raise RunFailed(
            f"{self.folder}: was deleted, moved or replaced while it was trained, or another"
            " process trains it by now; nothing more is written there"
        )

    def _acquire(self) -> None:
        self._lock.acquire()
        self._taken = os.stat(self.folder), os.stat(self.folder / ".lock")


def _is(path: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), known)
    except FileNotFoundError:
        return False
