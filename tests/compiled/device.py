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
from fastkd_kernels.attention.mixing import maps
from fastkd_kernels.attention.pairs import alignment as pairs
from fastkd_kernels.attention.query_key import alignment as query_key


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

    with _in_place_of("scratch_bytes", scratch_bytes):
        yield


@contextlib.contextmanager
def slots_of(programs: int) -> Iterator[None]:
    """So many programs with a weight gradient of their own: few walk several rows each."""
    with _in_place_of("SLOTS", programs):
        yield


@contextlib.contextmanager
def _in_place_of(name: str, value: object) -> Iterator[None]:
    """Another value of what modules of fastkd_kernels know by a name, and no plan made before."""
    kept = [
        (module, vars(module)[name])
        for path, module in sys.modules.items()
        if path.startswith(fastkd_kernels.__name__) and name in vars(module)
    ]
    if not kept:
        raise RuntimeError(f"no module of fastkd_kernels has a {name}")
    for module, _ in kept:
        vars(module)[name] = value
    _forget_plans()
    try:
        yield
    finally:
        for module, before in kept:
            vars(module)[name] = before
        _forget_plans()


def _forget_plans() -> None:
    for module in (query_key, pairs, maps):
        module.planned.cache_clear()
