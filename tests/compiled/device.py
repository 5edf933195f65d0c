"""The kernels as they stand on a machine without a GPU, ready to be executed."""

import contextlib
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator

import fastkd_kernels
import torch
from fastkd_kernels import common


def prepare() -> None:
    """Launchers take tensors on a CPU from now on, and kernels stay what the compiler takes."""
    if common.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled")
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    root = f"{fastkd_kernels.__name__}."
    for module in pkgutil.walk_packages(fastkd_kernels.__path__, root):
        importlib.import_module(module.name)  # each reads INTERPRETED as it is now
    common.INTERPRETED = True


@contextlib.contextmanager
def scratch_of(amount: int) -> Iterator[None]:
    """A scratch of so many bytes, whatever the device: small ones cut a sentence in pieces."""

    def scratch_bytes(device: torch.device) -> int:
        return amount

    kept = [
        (module, module.scratch_bytes)
        for name, module in sys.modules.items()
        if name.startswith(fastkd_kernels.__name__) and hasattr(module, "scratch_bytes")
    ]
    if not kept:
        raise RuntimeError("no module of fastkd_kernels has a scratch_bytes")
    for module, _ in kept:
        vars(module)["scratch_bytes"] = scratch_bytes
    try:
        yield
    finally:
        for module, function in kept:
            vars(module)["scratch_bytes"] = function
