"""Steps of AdamW that leave no weight, and no moment, that is not a number."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastkd.train.ranks import Ranks
from fastkd.train.sharding import local

_WEIGHTS = 1e37  # float32 ends at 3.4e38
_GRADIENTS = 1e18  # whose squares AdamW averages
_UNDERFLOW = 1e-18  # of gradients whose squares do
_NORMAL = 1.2e-38  # an eps below it is zero in float32, and 0 / 0 the step of what has no gradient


class StepGuard:
    """Takes back a step after which weights, or the optimizer's moments, are not finite.

    A copy to take it back with is made only where a step might overflow. That is known without a
    look at the weights: a step multiplies the largest by |1 − lr·decay| at most and adds at most
    lr · C, where by Cauchy and Schwarz C = 1 / ((1 − β₁)·√((1 − β₂)(1 − β₁²/β₂))) bounds |m̂|/√v̂,
    if eps is not lost in float32.
    The weights are looked at only when that bound has grown too large.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, ranks: Ranks, device: torch.device):
        self.optimizer, self.ranks, self.device = optimizer, ranks, device
        self._largest = math.inf  # no weight is above it
        self._gradient = 0.0  # the largest norm of gradients so far

    def step(self, norm: float) -> bool:
        """Whether the step was made, with gradients of this norm, equal in all processes."""
        if not self._may_overflow(norm):
            self.optimizer.step()
            return True
        before = {name: tensor.clone() for name, tensor in self._tensors()}
        self.optimizer.step()
        bad = any(_overflown(tensor, before.get(name)) for name, tensor in self._tensors())
        self._largest = math.inf
        if not self.ranks.any(bad, self.device):
            return True
        for name, tensor in self._tensors():
            if name in before:
                tensor.copy_(before[name])
            else:
                tensor.zero_()  # a moment, before its first step
        return False

    def _may_overflow(self, norm: float) -> bool:
        """And remembers what the weights may have grown to."""
        self._gradient = max(self._gradient, norm)
        grown = max(self._grown(group) for group in self.optimizer.param_groups)
        if max(grown / _WEIGHTS, self._gradient / _GRADIENTS) > 1:
            self._look()
            self._gradient = max(self._gradient, norm)
            grown = max(self._grown(group) for group in self.optimizer.param_groups)
        self._largest = grown
        return max(grown / _WEIGHTS, self._gradient / _GRADIENTS) > 1

    def _grown(self, group: dict[str, Any]) -> float:
        rate, decay, eps = (float(group[key]) for key in ("lr", "weight_decay", "eps"))
        if eps < _NORMAL:
            return math.inf
        first, second = group["betas"]
        moved = self._gradient / eps
        if first**2 < second:
            ratio = (1 - second) * (1 - first**2 / second)
            moved = min(moved, 1 / ((1 - first) * math.sqrt(ratio)) + _UNDERFLOW / eps)
        return self._largest * max(1, abs(1 - rate * decay)) + rate * moved

    def _look(self) -> None:
        """The largest weight and gradient that there are, of those whose averages are kept."""
        norms: dict[bool, list[Tensor]] = {False: [], True: []}  # of weights; of squares
        for name, tensor in self._tensors():
            if not tensor.numel():
                continue  # of a parameter with fewer rows than processes
            norm = torch.linalg.vector_norm(tensor, math.inf)
            if norm.isinf():  # of an output bias, −inf bars an id
                norm = torch.linalg.vector_norm(
                    tensor.masked_fill(tensor == -math.inf, 0), math.inf
                )
            norms[name[1] == "exp_avg_sq"].append(norm.to(self.device))
        none = torch.zeros((), device=self.device)
        weights, squares = (torch.stack([none, *norms[kind]]).amax() for kind in (False, True))
        found = self.ranks.largest({"weights": weights, "squares": squares})
        self._largest, self._gradient = found["weights"], math.sqrt(found["squares"])

    def _tensors(self) -> Iterator[tuple[tuple[int, str], Tensor]]:
        """Weights and what AdamW keeps of them, as they lie in this process."""
        index = 0
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                yield (index, "weight"), local(parameter.detach())
                for kind, tensor in self.optimizer.state.get(parameter, {}).items():
                    yield (index, kind), local(tensor)
                index += 1


def _overflown(tensor: Tensor, before: Tensor | None) -> bool:
    """Whether there is NaN or an infinity; −inf of an output bias is one that was there before."""
    good = tensor.isfinite()
    if before is not None:
        good |= tensor == before
    return not bool(good.all())
