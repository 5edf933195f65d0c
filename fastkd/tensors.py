"""Files of tensors, in the safetensors format: written whole, and read with nothing on trust."""

import errno
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from fastkd.errors import InputError, RunFailed
from fastkd.reading import open_file

_BIAS = "output_bias"
_ROOM = 4 << 20  # bytes; safetensors buffers 1 MiB, and aborts the process where it has none
_MODELESS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # of file systems that keep no modes


def read_tensors(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file; InputError where it is damaged, no file, or has what is not finite.

    Raises RunFailed where the system's limits are reached.
    """
    try:
        with open_file(file) as opened:
            tensors = _load(opened.read(), device) if _odd(file) else load_file(file, device)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: damaged or missing: {error}") from None
    except RuntimeError as error:  # PyTorch's, as it opens and maps the file
        if not file.exists():  # dropped meanwhile
            raise InputError(f"{file}: damaged or missing: {error}") from None
        raise RunFailed(f"{file}: cannot be read: {error}") from None
    check_values(tensors, file)
    return tensors


def count_numbers(file: Path) -> int:
    """How many a file's tensors have; InputError where it is damaged or no file."""
    try:
        with open_file(file) as opened:
            if _odd(file):
                return sum(tensor.numel() for tensor in load(opened.read()).values())
        with safe_open(file, "pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: damaged or missing: {error}") from None
    return sum(math.prod(shape) for shape in shapes)


def _odd(file: Path) -> bool:
    """Whether its path is not UTF-8, to which safetensors writes, but from which it maps none."""
    try:
        os.fsencode(file).decode()
    except UnicodeDecodeError:
        return True
    return False


def _load(content: bytes, device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in load(content).items()}


def write_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a file, for a folder that appears whole; OSError where the disk does not take it."""
    try:
        bytearray(_ROOM)
    except MemoryError:
        raise MemoryError(f"{file}: cannot be written") from None
    file.touch()
    mode = file.stat().st_mode  # as the umask has it; of a file of its own it is 0600
    try:
        save_file(tensors, file, metadata)
        _set_mode(file, mode)
    except SafetensorError as error:  # a full disk, of which it keeps only the words
        raise OSError(errno.EIO, f"cannot be written: {error}", str(file)) from None


def _set_mode(file: Path, mode: int) -> None:
    """As far as the file system has modes of single files: FAT, CIFS and FUSE may refuse."""
    if file.stat().st_mode == mode:
        return
    try:
        file.chmod(mode)
    except OSError as error:
        if error.errno not in _MODELESS:
            raise


def check_values(tensors: dict[str, Tensor], source: Path) -> None:
    """InputError where a tensor of real numbers, read from `source`, has NaN or an infinity.

    −inf is a value of an output bias: it keeps an id from being written.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        bad = ~tensor.isfinite()
        if name.endswith(_BIAS):
            bad &= tensor != -torch.inf
        count = int(bad.sum())
        if count:
            raise InputError(
                f"{source}: {name}: {count:,} of {tensor.numel():,} numbers are not finite;"
                " expected another checkpoint, or a run trained anew"
            )
