"""Builds the kernel in `cpp/` with the system's compiler, and describes its arguments.

It is built once for each machine, on first need, and kept in the user's cache folder. Building
takes a few seconds; `wanted` says which calls may wait for that.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "cpp"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC")  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT = 120  # seconds
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
    found = [
        (
            layer.data_ptr() + head * layer.stride(1) * layer.itemsize,
            layer.stride(0),
            layer.stride(2),
        )
        for layer in layers
        for head in range(layer.shape[1])
        for _ in range(repeat)
    ]
    return torch.tensor(found, dtype=torch.int64)


def wanted(cells: int) -> bool:
    """Whether a call of so many cells, over all maps, takes the compiled kernel.

    FASTKD_NATIVE=never leaves it out, FASTKD_NATIVE=always takes it for calls of any size. By
    default small calls, such as a first try of the loss, never wait for a compiler.
    """
    choice = os.environ.get("FASTKD_NATIVE", "auto")
    if choice == "never" or (choice != "always" and cells < LARGE):
        return False
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where it cannot be built or loaded."""
    try:
        loaded = ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.info("attention alignment runs without its compiled kernel: %s", error)
        return None
    for function in (loaded.fastkd_memory, loaded.fastkd_alignment):
        function.argtypes = (ctypes.POINTER(Call),)
    loaded.fastkd_memory.restype = ctypes.c_int64
    loaded.fastkd_alignment.restype = None
    return loaded


def _built() -> Path:
    compiler = shlex.split(os.environ.get("CXX", "")) or list(filter(shutil.which, COMPILERS))[:1]
    if not compiler:
        raise OSError("no C++ compiler found")
    texts = [path.read_text() for path in sorted(SOURCES.iterdir())]
    what = "\0".join((*texts, *FLAGS, *compiler, _processor()))
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    folder = cache_folder()
    target = folder / f"attention-{name}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / target.name
        command = (*compiler, *FLAGS, str(SOURCES / "kernel.cpp"), "-o", str(output))
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
        output.replace(target)  # at once: another process may be building the same
    return target


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastkd"


def _processor() -> str:
    """What -march=native depends on; the cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("flags", "features", "model name")
    return "\n".join(sorted({line for line in lines if line.lower().startswith(told)}))
