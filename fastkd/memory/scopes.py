"""Where in a model memory is asked for: modules, losses, and their backward passes."""

import bisect
import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fastkd.functional.dispatch import BACKENDS

# What the functional layer calls in a backend, and what a report calls it.
LOSSES = {
    "attention": {"query_key_loss": "alignment loss", "map_loss": "alignment loss"},
    "tokens": {"dense_losses": "token losses", "linear_losses": "token losses"},
}

Scope = tuple[str, ...]  # outermost first


class Scopes:
    """The scope of the moment, in the forward pass and, of the same code, in the backward pass.

    A node of the autograd graph has a number that rises as the graph is built; which scope was
    open at which number tells where the node that runs in a backward pass was made.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None = None) -> None:
        self._names: dict[int, str] = {}
        for root, module in (modules or {}).items():
            for name, part in module.named_modules(prefix=root):
                self._names.setdefault(id(part), name)
        self._stack: list[str] = []
        self._numbers: list[int] = []
        self._opened: list[Scope] = []
        self._stepping = False

    @property
    def phase(self) -> str:
        if torch._C._current_autograd_node() is not None:
            return "backward"
        return "optimizer" if self._stepping else "forward"

    @property
    def current(self) -> Scope:
        node = torch._C._current_autograd_node()
        if node is None:
            return tuple(self._stack)
        place = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        # The nodes that add to a parameter's gradient are numbered beyond all others.
        known = place >= 0 and node.name() != "torch::autograd::AccumulateGrad"
        return self._opened[place] if known else ()

    def open(self, name: str) -> None:
        self._stack.append(name)
        self._mark()

    def close(self) -> None:
        if self._stack:
            self._stack.pop()
        self._mark()

    def _mark(self) -> None:
        if torch._C._current_autograd_node() is None:
            self._numbers.append(torch._C._autograd._get_sequence_nr())
            self._opened.append(tuple(self._stack))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follows every module, loss and optimizer that runs inside."""
        handles = [
            register_module_forward_pre_hook(lambda module, args: self.open(self._name(module))),
            register_module_forward_hook(
                lambda module, args, output: self.close(), always_call=True
            ),
            register_optimizer_step_pre_hook(lambda *_: self._step(True)),
            register_optimizer_step_post_hook(lambda *_: self._step(False)),
        ]
        try:
            with self._losses():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _step(self, stepping: bool) -> None:
        self._stepping = stepping

    def _name(self, module: nn.Module) -> str:
        return self._names.get(id(module), type(module).__name__)

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        with contextlib.ExitStack() as restore:
            for family, functions in LOSSES.items():
                for backend in BACKENDS:
                    try:
                        module = importlib.import_module(f"fastkd.backends.{family}.{backend}")
                    except ImportError:
                        continue
                    for name, label in functions.items():
                        original = getattr(module, name, None)
                        if original is None:
                            continue
                        restore.callback(setattr, module, name, original)
                        setattr(module, name, self._scoped(original, label))
            yield

    def _scoped(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.open(label)
            try:
                return function(*args, **kwargs)
            finally:
                self.close()

        return call
