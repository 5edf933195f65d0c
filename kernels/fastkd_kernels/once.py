"""What the Functions of all losses share about gradients that are computed with the loss."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = {Tensor, Parameter, type(None)}
# Private, and not in every version.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)


class _FirstOrderOnly(torch.autograd.Function):
    """Hands gradients on, and refuses to be differentiated.

    After the first `count` tensors, the gradients, come those that they depend on, so that any way
    back to them leads here.
    """

    @staticmethod
    def forward(ctx, error: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.error = error
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(ctx.error)


def only_first_order(
    gradients: Sequence[Tensor | None], sources: Iterable[Tensor | None], error: str
) -> list[Tensor | None]:
    """`gradients` as a backward returns them: under create_graph, differentiating is an error."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return list(gradients)
    present = [gradient for gradient in gradients if gradient is not None]
    given = [source for source in sources if source is not None]
    guarded = iter(_FirstOrderOnly.apply(error, len(present), *present, *given))
    return [None if gradient is None else next(guarded) for gradient in gradients]


def early_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of gradients that are computed with the loss, before what follows it is known: float16 would
    lose small ones before a loss scale multiplies them."""
    return torch.float32 if dtype == torch.float16 else dtype


def graph_is_freed() -> bool:
    """Whether the running backward is certainly the only one through its graph."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _graph_is_kept is None:
        return False
    return not _graph_is_kept()


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient·factor in `dtype`, multiplied in float32 and rounded once."""
    with torch.no_grad():
        if torch.compiler.is_compiling():
            return (gradient.float() * factor).to(dtype)
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))


def runs_at_once(*tensors: Tensor | None) -> bool:
    """Whether the kernels may be launched without an operator that a compiler or a mode sees."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return _PLAIN.issuperset(map(type, tensors))
