"""Chooses the backend that serves a call."""

import importlib
import sys
from types import ModuleType

import torch

from fastkd.errors import BackendUnavailable, InputError

BACKENDS = ("reference", "torch", "triton")


def backend_module(family: str, backend: str, tensor: torch.Tensor, *call) -> ModuleType:
    """The module `fastkd.backends.<family>.<backend>` that serves a call on `tensor`'s device.

    A backend module may define `unavailable(tensor, *call) -> str | None`, the reason why it
    cannot serve the call. `auto` takes the first that can: triton on a GPU, torch, reference.
    A backend named by the caller that cannot serve raises `BackendUnavailable`.
    """
    if backend == "auto":
        order = BACKENDS[::-1] if tensor.is_cuda else BACKENDS[1::-1]
        for name in order:
            module, reason = _load(family, name, tensor, *call)
            if module is not None and reason is None:
                return module
    if backend not in BACKENDS:
        raise InputError(f"backend must be 'auto' or one of {BACKENDS}, not {backend!r}")
    module, reason = _load(family, backend, tensor, *call)
    if module is None or reason is not None:
        raise BackendUnavailable(f"backend {backend!r} cannot serve this {family} loss: {reason}")
    return module


def _load(
    family: str, name: str, tensor: torch.Tensor, *call
) -> tuple[ModuleType | None, str | None]:
    path = f"fastkd.backends.{family}.{name}"
    reason = _import(path)
    if reason is not None:
        return None, reason
    module = sys.modules[path]
    unavailable = getattr(module, "unavailable", None)
    return module, unavailable(tensor, *call) if unavailable else None


@torch.compiler.assume_constant_result  # torch.compile does not trace imports
def _import(path: str) -> str | None:
    """Why the module cannot be imported, or None once it is."""
    try:
        importlib.import_module(path)
    except ImportError as error:
        return str(error)
    return None
