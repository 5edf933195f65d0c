"""A run's folder stays its own while it is trained, or nothing more is written there."""

import contextlib
import os
import shutil

import pytest

from fastkd.errors import InputError, RunFailed
from fastkd.runs.lock import RunLock


@pytest.fixture
def taken(tmp_path):
    lock = RunLock(tmp_path / "run")
    lock.take()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    yield lock
    lock.release()


def test_another_is_refused_until_it_is_released(taken):
    taken.check()
    other = RunLock(taken.folder)
    with pytest.raises(InputError, match="another process trains this run"):
        other.take()
    taken.release()
    taken.check()  # nobody's: nothing to hold
    other.take()
    other.release()


def test_a_folder_that_was_deleted_moved_or_begun_anew(taken, tmp_path):
    """At 0.1 two trainers then wrote their checkpoints into one folder."""
    taken.folder.rename(tmp_path / "moved")
    with pytest.raises(RunFailed, match="was deleted, moved or replaced"):
        taken.check()
    assert not taken.folder.exists()
    second = RunLock(taken.folder)
    second.take()
    with pytest.raises(RunFailed, match="nothing more is written"):
        taken.check()
    second.check()
    second.release()
    with pytest.raises(RunFailed):
        taken.check()
    shutil.rmtree(taken.folder)


def test_a_folder_that_was_begun_anew_in_place(taken):
    """By a trainer that has ended: its lock is free, but what is there is its own."""
    for file in taken.folder.iterdir():
        file.unlink()
    second = RunLock(taken.folder)
    second.take()
    second.release()
    for _ in range(2):
        with pytest.raises(RunFailed, match="nothing more is written"):
            taken.check()


def opened():
    """Inodes of the files and folders that this process has open."""
    found = []
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # what listed them
            status = os.fstat(int(number))
            found.append((status.st_dev, status.st_ino))
    return found


def test_the_folder_stays_open_until_it_is_released(tmp_path):
    """Else a file system such as ext4 gives its inode to the next folder of that name."""
    before, lock = sorted(opened()), RunLock(tmp_path / "run")
    for _ in range(2):
        lock.take()
        folder = os.stat(lock.folder)
        (lock.folder / ".lock").unlink()
        lock.check()
        shutil.rmtree(lock.folder)
        assert opened().count((folder.st_dev, folder.st_ino)) == 1
        lock.folder.mkdir()
        with pytest.raises(RunFailed, match="was deleted, moved or replaced"):
            lock.check()
        lock.release()
        assert sorted(opened()) == before


def test_a_lock_that_was_deleted_is_taken_again(taken):
    (taken.folder / ".lock").unlink()
    taken.check()
    with pytest.raises(InputError):
        RunLock(taken.folder).take()
    (taken.folder / ".lock").unlink()
    second = RunLock(taken.folder)
    second.take()
    with pytest.raises(RunFailed, match="another process trains it by now"):
        taken.check()
    second.release()
