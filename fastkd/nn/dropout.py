"""Dropout, alone and as the end of a residual branch.

On a CPU PyTorch draws one random number an element, one after another, and dropout costs as much as
a matrix product of the layer. Here one 64-bit number serves four elements: a third of the time,
and a seventh of what cannot run in parallel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 1 << 16  # values of the random number that an element gets


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout(x, probability, training)`.

    On a CPU the probability is rounded to a multiple of 2⁻¹⁶, and what is kept is scaled by the
    inverse of exactly the probability with which it is kept: the expectation is x.
    """
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    keep, scale = _keep(x, probability)
    result: Tensor = _Scale.apply(x, keep, scale)  # type: ignore[no-untyped-call]
    return result


def add_dropped(x: Tensor, branch: Tensor, probability: float, training: bool) -> Tensor:
    """x + dropout(branch, probability, training), in the type of x."""
    if not training or probability == 0.0:
        return x + branch
    if x.device.type != "cpu":
        return x + F.dropout(branch, probability)
    keep, scale = _keep(branch, probability)
    result: Tensor = _AddScaled.apply(x, branch, keep, scale)  # type: ignore[no-untyped-call]
    return result


def _keep(x: Tensor, probability: float) -> tuple[Tensor, float]:
    """1 where an element is kept and 0 elsewhere, in float32, and what to multiply it with."""
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    drawn = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # from -2¹⁵ to 2¹⁵ - 1
    return drawn.float().ge_(dropped - _LEVELS // 2), _LEVELS / (_LEVELS - dropped)


class _Scale(torch.autograd.Function):
    """x · keep · scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep.mul_(scale))
        return (x * keep).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (factor,) = ctx.saved_tensors
        return (gradient * factor).to(gradient.dtype), None, None


class _AddScaled(torch.autograd.Function):
    """x + branch · keep · scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, keep: Tensor, scale: float) -> Tensor:
        factor = keep.mul_(scale)
        ctx.save_for_backward(factor)
        ctx.dtype = branch.dtype
        return torch.addcmul(x, branch.to(x.dtype), factor.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (factor,) = ctx.saved_tensors
        return gradient, (gradient * factor).to(ctx.dtype), None, None
