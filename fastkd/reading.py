"""What lies in files, read with nothing taken on trust: kind, size, hash and values are checked."""

import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.errors import InputError, RunFailed

# Bytes of a file that is read into memory as text; those of a run have some thousand.
LARGEST_TEXT = 1 << 26
_AT_ONCE = 1 << 24
# What is wrong then is not the file.
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
    stat.S_IFDIR: "folder",
}


def open_file(path: str | Path) -> io.BufferedReader:
    """A file for reading; OSError for a FIFO or a device, which might be waited for, or endless.

    Raises RunFailed where the system's limits are reached: the file may be as it should be.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _LIMITS:
            raise RunFailed(f"{path}: cannot be read: {error.strerror}") from None
        raise
    try:
        _expect_file(os.fstat(descriptor), path)
        return io.BufferedReader(io.FileIO(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def expect_file(path: Path) -> None:
    """OSError where something other than a file is there, such as a FIFO or a device."""
    if path.exists():
        _expect_file(path.stat(), path)


def _expect_file(status: os.stat_result, path: str | Path) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"expected a file, not a {_KINDS.get(kind, kind)}", str(path))


def read_bytes(path: str | Path, largest: int = LARGEST_TEXT) -> bytes:
    """All of a file; OSError where it is none, or has more than `largest` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, more than {largest:,}", str(path))
        return file.read()


def read_text(path: str | Path) -> str:
    """All of a file in UTF-8; OSError as `read_bytes`, UnicodeDecodeError where it is not that."""
    return read_bytes(path).decode("utf-8")


def sha256_of(path: str | Path) -> str:
    """The hash of a file's content; OSError as `open_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_array(
    path: Path, dtype: str | np.dtype[Any], shape: tuple[int, ...], sha256: str | None = None
) -> np.ndarray[Any, Any]:
    """A file that holds nothing but an array, mapped into memory for reading.

    Raises InputError where it has another size, or another hash than a given `sha256`.
    """
    try:
        kind = np.dtype(dtype)
        expected = int(np.prod(shape, dtype=object)) * kind.itemsize
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected:
                raise InputError(f"{path}: damaged: has {size:,} bytes instead of {expected:,}")
            if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise InputError(f"{path}: damaged: its content does not match its hash")
            if expected == 0:
                return np.empty(shape, kind)  # an empty file cannot be mapped
            return np.memmap(file, kind, "r", shape=shape)
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read: {reason}") from None


def bad_value(array: np.ndarray[Any, Any], least: float, most: float) -> float | None:
    """A value of `array` that is not in [least, most], such as NaN; None where there is none."""
    flat = array.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        block = flat[start : start + _AT_ONCE]
        bad = ~((block >= least) & (block <= most))
        if bad.any():
            return float(block[bad.argmax()])
    return None
