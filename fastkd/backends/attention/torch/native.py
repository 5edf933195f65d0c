"""Builds the kernel in `cpp/` with the system's compiler, and describes its arguments.

It is built once for each machine, on first need, and kept in the user's cache folder. Building
takes a few seconds; `wanted` says which calls may wait for that.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from subprocess import SubprocessError

import torch
from torch import Tensor

from fastkd import watching
from fastkd.backends.attention.torch import native_library

SOURCE = Path(__file__).parent / "cpp" / "kernel.cpp"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC")  # fmt: skip
LARGE = 1 << 16  # cells of all maps
HEAD = 16  # head sizes are multiples of this

LOSSES = {"map": 0, "row": 1, "mixture": 2}

_log = logging.getLogger(__name__)
_integer, _real, _pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Mix(ctypes.Structure):
    _fields_ = (
        ("loss", _integer),
        ("students", _integer),
        ("teachers", _integer),
        ("learn_maps", _integer),
        ("learn_weight", _integer),
        ("row_cells", _integer),
        ("sharp", _integer),
        ("inverse_temperature", _real),
        ("weight", _pointer),
        ("surplus", _pointer),
    )


class Side(ctypes.Structure):
    _fields_ = (
        ("size", _integer),
        ("scale", _real),
        ("rounds", _integer),
        ("query", _pointer),
        ("key", _pointer),
    )


class Call(ctypes.Structure):
    _fields_ = (
        ("mix", Mix),
        ("student", Side),
        ("teacher", Side),
        ("query_gradient", _pointer),
        ("key_gradient", _pointer),
        ("causal", _integer),
        ("map_cells", _integer),
        ("upstream", _pointer),
        ("loss", _pointer),
        ("weight_gradient", _pointer),
        ("count", _integer),
        ("order", _pointer),
        ("rows", _pointer),
        ("keys", _pointer),
        ("workspace", _integer),
        ("threads", _integer),
        ("memory", _pointer),
    )


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def heads(layers: Sequence[Tensor], maps: int) -> Tensor:
    """`Head` of each map: address, and distance of sentences and of rows in numbers."""
    repeat = maps // sum(layer.shape[1] for layer in layers)
    found: list[tuple[int, int, int]] = []
    for layer in layers:
        start, (sentence, head, row, _) = layer.data_ptr(), layer.stride()
        step = head * layer.itemsize
        for n in range(layer.shape[1]):
            found += [(start + n * step, sentence, row)] * repeat
    return torch.tensor(found, dtype=torch.int64)


def wanted(cells: int) -> bool:
    """Whether a call of so many cells, over all maps, takes the compiled kernel.

    FASTKD_NATIVE=never leaves it out, FASTKD_NATIVE=always takes it for calls of any size. By
    default small calls, such as a first try of the loss, never wait for a compiler.
    """
    choice = os.environ.get("FASTKD_NATIVE", "auto")
    if watching.pretended().compiled == "never":
        return False
    if choice == "never" or (choice != "always" and cells < LARGE):
        return False
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None, with one line of warning, where it cannot be built or loaded."""
    try:
        loaded = native_library.load("attention", SOURCE, FLAGS)
        memory, alignment = loaded.fastkd_memory, loaded.fastkd_alignment
    except (AttributeError, OSError, RuntimeError, ValueError, SubprocessError) as error:
        said = " ".join(str(error).split())
        _log.warning(
            "attention alignment runs without its compiled kernel, which saves time on a CPU: %s"
            " (FASTKD_NATIVE=never does without a word)",
            said,
        )
        return None
    for function in (memory, alignment):
        function.argtypes = (ctypes.POINTER(Call),)
    memory.restype = ctypes.c_int64
    alignment.restype = None
    return loaded
