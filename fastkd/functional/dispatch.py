"""Chooses the backend that serves a call."""

import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fastkd import watching
from fastkd.errors import BackendUnavailable, InputError
from fastkd.functional.calls import AlignmentBackend, TokenBackend

BACKENDS = ("reference", "torch", "triton")


class Backend(Protocol):
    def unavailable(self, call: Any, /) -> str | None: ...


AnyBackend = TypeVar("AnyBackend", bound=Backend)


def attention_backend(name: str) -> AlignmentBackend:
    if name == "reference":
        from fastkd.backends.attention import reference

        return reference
    if name == "torch":
        from fastkd.backends.attention import torch

        return torch
    from fastkd.backends.attention import triton

    return triton


def token_backend(name: str) -> TokenBackend:
    if name == "reference":
        from fastkd.backends.tokens import reference

        return reference
    if name == "torch":
        from fastkd.backends.tokens import torch

        return torch
    from fastkd.backends.tokens import triton

    return triton


def choose(
    family: str, load: Callable[[str], AnyBackend], backend: str, tensor: Tensor, call: object
) -> AnyBackend:
    """The backend of a family that serves a call on `tensor`'s device.

    `auto` takes the first that can: triton on a GPU, torch, reference. One named by the caller
    that cannot serve raises `BackendUnavailable`.
    """
    if backend not in ("auto", *BACKENDS):
        raise InputError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, not {backend!r}")
    names: tuple[str, ...] = (backend,)
    if backend == "auto":
        fused = tensor.is_cuda or watching.pretended().fused
        names = BACKENDS[::-1] if fused else BACKENDS[1::-1]
    reason = None
    for name in names:
        path = f"fastkd.backends.{family}.{name}"
        reason = None if path in sys.modules else _import(path)
        if reason is None:
            found = load(name)
            reason = found.unavailable(call)
            if reason is None:
                return found
    raise BackendUnavailable(f"backend {backend!r} cannot serve this {family} loss: {reason}")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # does not trace a module's first import
def _import(path: str) -> str | None:
    """Why the module cannot be imported, or None once it is."""
    try:
        importlib.import_module(path)
    except ImportError as error:
        return str(error)
    return None
