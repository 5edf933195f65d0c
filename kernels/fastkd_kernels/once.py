"""What the Functions of both token losses share about their backward."""

import torch
from torch import Tensor


class FirstOrderOnly(torch.autograd.Function):
    """Hands a gradient on, and refuses to be differentiated.

    `sources` are what the gradient depends on, so that any way back to them leads here.
    """

    @staticmethod
    def forward(ctx, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "the Triton token losses have no second-order gradient; use backend='reference'"
        )


def first_order(gradient: Tensor | None, *sources: Tensor | None) -> Tensor | None:
    """`gradient` as a backward returns it: differentiable, with an error, under create_graph."""
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    return FirstOrderOnly.apply(gradient, *(source for source in sources if source is not None))


def graph_is_freed() -> bool:
    """Whether the running backward is certainly the only one through its graph."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is not None and not kept()


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient·factor in `dtype`, multiplied in float32 and rounded once."""
    with torch.no_grad():
        if torch.compiler.is_compiling():
            return (gradient.float() * factor).to(dtype)
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
