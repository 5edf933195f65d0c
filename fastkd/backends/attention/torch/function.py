"""The autograd function around a walk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastkd_kernels.once import only_first_order
from torch import Tensor

from fastkd.backends.attention.torch.engine import Problem, Walk
from fastkd.backends.attention.torch.native_walk import NativeWalk, serves

ONCE = (
    "backend 'torch' of the attention alignment losses has no second-order gradient; "
    "use backend='reference'"
)


# From learned maps, queries or keys, the weight, and constants.
Pose = Callable[[tuple[Tensor, ...], Tensor | None, tuple[Tensor, ...]], Problem]


@dataclass(frozen=True)
class Call:
    """A call, but for its tensors: learned maps, queries or keys; weight and bias; constants."""

    pose: Pose
    reduction: str
    maps: int  # how many tensors the student's maps come from
    has_weight: bool
    has_bias: bool
    needed: tuple[bool, ...]  # which of the learned tensors want a gradient

    @property
    def learned(self) -> int:
        return self.maps + self.has_weight + self.has_bias

    def walk(self, tensors: tuple[Tensor, ...], upstream: Tensor | None, learning: bool) -> Walk:
        weight = tensors[self.maps] if self.has_weight else None
        device = tensors[0].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            problem = self.pose(tensors[: self.maps], weight, tensors[self.learned :])
            walk = (NativeWalk if serves(problem) else Walk)(
                problem,
                upstream,
                learning and any(self.needed[: self.maps]),
                learning and self.has_weight and self.needed[self.maps],
            )
            walk.run()
        return walk

    def gradients(self, walk: Walk, tensors: tuple[Tensor, ...]) -> list[Tensor | None]:
        """Of the learned tensors, None where not needed."""
        found: list[Tensor | None] = []
        found += walk.student.gradients() if walk.maps_learn else [None] * self.maps
        if self.has_weight:
            found.append(walk.weight_gradient_of(tensors[self.maps]))
        if self.has_bias:
            found.append(torch.zeros_like(tensors[self.learned - 1]))
        return [each if need else None for each, need in zip(found, self.needed, strict=True)]


def aligned(call: Call, *tensors: Tensor) -> Tensor:
    if any(call.needed):
        loss: Tensor = AlignmentFunction.apply(call, *tensors)  # type: ignore[no-untyped-call]
        return loss
    return reduced(call.walk(tensors, None, learning=False), call)


def reduced(walk: Walk, call: Call) -> Tensor:
    loss, dtype = walk.loss, walk.problem.workspace.dtype
    if call.reduction == "none":
        return loss.to(dtype)
    return (loss.sum() / (loss.shape[0] if call.reduction == "mean" else 1)).to(dtype)


class AlignmentFunction(torch.autograd.Function):
    """Sums are differentiated with the loss; a loss of each map is walked again in backward."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        walk = call.walk(tensors, None, learning=call.reduction != "none")
        ctx.gradients = None
        if call.reduction != "none":
            ctx.gradients = call.gradients(walk, tensors)
        return reduced(walk, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        call, tensors = ctx.call, ctx.saved_tensors
        with torch.no_grad():
            gradients = [
                None if gradient is None else gradient.to(each.dtype)
                for gradient, each in zip(
                    AlignmentFunction._gradients(ctx, call, tensors, upstream),
                    tensors[: call.learned],
                    strict=True,
                )
            ]
        gradients = only_first_order(gradients, (*tensors, upstream), ONCE)
        return (None, *gradients, *[None] * (len(tensors) - call.learned))

    @staticmethod
    def _gradients(
        ctx: Any, call: Call, tensors: tuple[Tensor, ...], upstream: Tensor
    ) -> list[Tensor | None]:
        if call.reduction == "none":
            return call.gradients(call.walk(tensors, upstream, learning=True), tensors)
        # They are handed out once and scaled in place; a retained graph has them computed again.
        gradients: list[Tensor | None] | None = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            gradients = call.gradients(call.walk(tensors, None, learning=True), tensors)
        if call.reduction == "mean":
            upstream = upstream / tensors[0].shape[0]
        elif upstream.device.type == "cpu" and float(upstream) == 1:
            return gradients
        return [None if each is None else each.mul_(upstream) for each in gradients]
