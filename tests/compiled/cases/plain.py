"""The alignment losses in plain PyTorch, rounded where the kernels are allowed to round.

The error-ratio rule asks for a plain computation at the same precision: one that multiplies in
float32 allows 1e-6 where operands of bfloat16 cost 2.5e-3. This one computes in float64 and rounds

- from bfloat16 queries and keys with a weight, maps and their gradients to bfloat16, and what is
  multiplied;
- from float16, what is multiplied by a weight to tf32, to nearest;
- gradients, last, to the type of what they belong to.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]
SMALLEST = 2.0**-126  # of a mixture under its logarithm


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, forward: Round | None, backward: Round | None) -> Tensor:
        ctx.round = backward
        return forward(x) if forward else x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.round(gradient) if ctx.round else gradient, None, None


def _to_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def _to_tf32(x: Tensor) -> Tensor:
    """To nearest, 10 bits of fraction."""
    return ((x.float().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32).to(x.dtype)


def alignment(
    inputs: list[Tensor | None],
    dtype: torch.dtype,
    upstream: Callable[[Tensor], Tensor],
    normalization: str,
    causal: bool = False,
    padding: str = "exclude",
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "sum",
) -> list[Tensor]:
    """The loss and its gradients, as `tests.kernels.attention_compare.run` returns them."""
    *tensors, weight = [None if x is None else x.detach().double() for x in inputs]
    learned = tensors[:1] if len(tensors) == 2 else tensors[:2]
    for leaf in (*learned, weight):
        if leaf is not None:
            leaf.requires_grad_()
    short = {torch.bfloat16: _to_bf16, torch.float16: _to_tf32}.get(dtype)
    stored = None
    first, last = tensors[0], tensors[-1]
    batch, queries = first.shape[0], first.shape[2]
    keys = first.shape[3] if len(tensors) == 2 else tensors[1].shape[2]
    here = {"device": first.device}
    cells = torch.ones(batch, 1, queries, keys, dtype=torch.bool, **here)
    if key_lengths is not None:
        cells = cells & (torch.arange(keys, **here) < key_lengths[:, None])[:, None, None]
    if causal:
        cells = cells & torch.ones(queries, keys, dtype=torch.bool, **here).tril()
    counted = cells
    if query_lengths is not None:
        counted = cells & (torch.arange(queries, **here) < query_lengths[:, None])[:, None, :, None]
    counted = counted if padding == "exclude" else torch.ones_like(cells)
    shown = counted if padding == "exclude" else cells
    if len(tensors) == 2:
        student, teacher = (x.masked_fill(~shown, 0) for x in (first, last))
    else:
        if weight is not None and dtype == torch.bfloat16:
            stored = _to_bf16
        student, teacher = (
            _Rounded.apply(_maps(query, key, cells, shown), stored, short)
            for query, key in (tensors[:2], tensors[2:])
        )
    mixed = student
    if weight is not None:
        factors = weight.softmax(1) if normalization == "mixture" else weight
        factors, maps = (_Rounded.apply(x, short, None) for x in (factors, student))
        mixed = _Rounded.apply(torch.einsum("jh,bhqk->bjqk", factors, maps), None, short)
    loss = _divergence(teacher, mixed, counted, normalization, temperature)
    if reduction != "none":
        loss = loss.sum() / (batch if reduction == "mean" else 1)
    wanted = [leaf for leaf in (*learned, weight) if leaf is not None]
    found = torch.autograd.grad(loss, wanted, upstream(loss))
    kinds = [x.dtype for x in inputs[: len(learned)] if x is not None] + [torch.float32]
    rounded = [gradient.to(kind) for gradient, kind in zip(found, kinds, strict=False)]
    return [loss.detach().float(), *rounded]


def _maps(query: Tensor, key: Tensor, cells: Tensor, shown: Tensor) -> Tensor:
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).mT * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~cells, torch.finfo(torch.float32).min)
    return scores.softmax(-1).masked_fill(~shown, 0)


def _divergence(
    teacher: Tensor, mixed: Tensor, counted: Tensor, normalization: str, temperature: float
) -> Tensor:
    """(B, Nt)"""
    if normalization == "mixture":
        floor = mixed.clamp(min=SMALLEST)
        return (torch.xlogy(teacher, teacher) - teacher * floor.log()).flatten(2).sum(2)
    groups = (2, 3) if normalization == "map" else (3, 3)
    counted = counted.flatten(*groups)
    a, m = ((x / temperature).flatten(*groups) for x in (teacher, mixed))
    lone = counted | ~counted.any(-1, keepdim=True)  # a group without a cell counts nothing
    a, m = (x.masked_fill(~lone, -1e30).log_softmax(-1) for x in (a, m))
    terms = (a.exp() * (a - m)).masked_fill(~counted, 0)
    return terms.flatten(2).sum(2)
