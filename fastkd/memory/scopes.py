"""Where in a model memory is asked for: modules, losses, and their backward passes."""

import bisect
import contextlib
from collections.abc import Iterator, Mapping

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

from fastkd import watching
from fastkd.functional import attention, tokens

PARTS = (attention.PART, tokens.PART)

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
        """Follows every module, loss and optimizer that runs inside, in this thread.

        PyTorch calls its hooks for the modules of all threads.
        """
        handles = [
            register_module_forward_pre_hook(lambda module, args: self._enter(module)),
            register_module_forward_hook(
                lambda module, args, output: self._leave(), always_call=True
            ),
            register_optimizer_step_pre_hook(lambda *_: self._step(True)),
            register_optimizer_step_post_hook(lambda *_: self._step(False)),
        ]
        watching.attach(self)
        try:
            yield
        finally:
            watching.detach(self)
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module) -> None:
        if watching.attached(self):
            self.open(self._name(module))

    def _leave(self) -> None:
        if watching.attached(self):
            self.close()

    def _step(self, stepping: bool) -> None:
        if watching.attached(self):
            self._stepping = stepping

    def _name(self, module: nn.Module) -> str:
        return self._names.get(id(module), type(module).__name__)


def loss_of(scope: Scope) -> str | None:
    """The loss that a scope belongs to, as reports call it."""
    part = next((part for part in reversed(scope) if part in PARTS), None)
    if part is None:
        return None
    kind = [part.rpartition(".")[2] for part in scope if ".kinds." in part]
    return f"{part}, {kind[0]}" if kind else part
