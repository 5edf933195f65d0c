"""Who watches what this thread computes, and what is pretended while it does.

Losses tell observers when they begin and end; models and backends ask what to pretend. All of it
hangs on one context variable: a thread sees its own, and nothing outlives those who watch. Code
that `torch.compile` traces is neither watched nor pretended to.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Observer(Protocol):
    """Is told of named parts of a computation, the innermost last."""

    def open(self, name: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Pretence:
    """How a computation departs from what its device and its tensors ask for."""

    packed: bool | None = None  # rows of padded batches are real tokens alone; None: on a CPU
    compiled: Literal["as wanted", "idle", "never"] = "as wanted"  # attention's kernel for CPUs
    fused: bool = False  # tensors on a CPU pass for ones that the Triton kernels take
    chunk: int | None = None  # logits at once in the token losses; None: as suits the device
    few_chunks: bool = False  # of all chunks the first two and the last: the others take the same


@dataclass(frozen=True)
class _Watch:
    observers: tuple[Observer, ...] = ()
    pretence: Pretence = Pretence()


_NOBODY = _Watch()
_watch: ContextVar[_Watch] = ContextVar("fastkd.watching", default=_NOBODY)


def pretended() -> Pretence:
    """What is pretended here and now."""
    return _NOBODY.pretence if torch.compiler.is_compiling() else _watch.get().pretence


@contextlib.contextmanager
def pretending(pretence: Pretence) -> Iterator[None]:
    """Has `pretence` hold inside, in place of another."""
    before = _watch.get().pretence
    _set(pretence=pretence)
    try:
        yield
    finally:
        _set(pretence=before)


def attach(observer: Observer) -> None:
    """Tells `observer` what happens in this context from now on."""
    _set(observers=(*_watch.get().observers, observer))


def detach(observer: Observer) -> None:
    """Tells it no more; others, who may have come before or after it, stay."""
    _set(observers=tuple(one for one in _watch.get().observers if one is not observer))


def attached(observer: Observer) -> bool:
    """Whether `observer` watches this context."""
    return any(one is observer for one in _watch.get().observers)


def named(name: str, function: Callable[..., Result], *args: Any) -> Result:
    """function(*args), of which observers hear by `name`."""
    if torch.compiler.is_compiling() or not (observers := _watch.get().observers):
        return function(*args)
    for observer in observers:
        observer.open(name)
    try:
        return function(*args)
    finally:
        for observer in reversed(observers):
            observer.close()


def _set(**changes: Any) -> None:
    _watch.set(dataclasses.replace(_watch.get(), **changes))
