"""What surrounds a process, made otherwise than it should be, from within it."""

import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.faults.rights import obey_rights

Hindrance = Callable[[], None]


def small_files(largest: int) -> Hindrance:
    """No file may have more bytes than that, as where a disk is full."""

    def hinder() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return hinder


def few_open_files(count: int) -> Hindrance:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def rights_hold() -> None:
    obey_rights()


def no_home() -> None:
    os.environ.pop("HOME", None)


def foreign_home() -> None:
    os.environ["HOME"] = "/proc/self"


def no_temporary_folder() -> None:
    os.environ["TMPDIR"] = "/nonexistent"
    tempfile.tempdir = None


def full_device_for_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.dup2(writing, 2)


def closed(stream: int) -> Hindrance:
    return lambda: os.close(stream)


def no_masks() -> None:
    os.umask(0)


def all_masks() -> None:
    os.umask(0o777 & ~0o700)


def a_folder_that_is_gone() -> None:
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)


def a_clock_that_jumps() -> None:
    """Back and forth by years, as one that is set while the machine runs."""
    draw, real = random.Random(1), time.time
    time.time = lambda: real() + draw.uniform(-1e8, 1e8)


class Surrounding(NamedTuple):
    """printed, said: whether what goes to standard output, to standard error, is known after it."""

    hinder: Hindrance
    printed: bool = True
    said: bool = True


# What must change nothing of what a verb leaves, though it may fail.
SURROUNDINGS = {
    "no HOME": Surrounding(no_home),
    "a HOME that cannot be written": Surrounding(foreign_home),
    "no TMPDIR": Surrounding(no_temporary_folder),
    "output to /dev/full": Surrounding(full_device_for_output, printed=False),
    "output that nobody reads": Surrounding(nobody_reads, printed=False, said=False),
    "standard input closed": Surrounding(closed(0)),
    "standard output closed": Surrounding(closed(1), printed=False),
    "standard error closed": Surrounding(closed(2), said=False),
    "umask 000": Surrounding(no_masks),
    "umask 077": Surrounding(all_masks),
    "a current folder that is gone": Surrounding(a_folder_that_is_gone),
    "a clock that jumps": Surrounding(a_clock_that_jumps),
}
