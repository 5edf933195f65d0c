"""Embeddings whose weight, an output projection's too, FSDP2 divides: looked up part by part."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from fastkd.functional.divided import Rows
from fastkd.integrations.sharded import Unit


class ByParts(nn.Module):
    """In place of an embedding that `fully_shard` was given, which it never makes whole.

    Rows come in turn from the processes that hold them, and so do their gradients go back: every
    process must call it as often as the others.
    """

    def __init__(self, aside: nn.Module) -> None:
        super().__init__()
        self._aside = (aside,)  # in a tuple, so that its parameters are not this module's

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        (aside,) = self._aside
        weight: Any = aside.weight
        unit = Unit.of(aside, weight)
        with _LookingUp(weight, unit):
            found = type(aside).forward(aside, *arguments, **keywords)
        return found if unit.output_dtype is None else found.to(unit.output_dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._aside[0], name)


class _LookingUp(TorchFunctionMode):
    """Within, `F.embedding` of a weight is that of its parts."""

    def __init__(self, weight: Tensor, unit: Unit) -> None:
        super().__init__()
        self.weight, self.unit = weight, unit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not embedding or args[1] is not self.weight:
            return func(*args, **kwargs)
        padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
        return _LookedUp.apply(self.unit.parameter, args[0], self.unit, padding)  # type: ignore[no-untyped-call]


class _LookedUp(torch.autograd.Function):
    """Rows (*, D) of a weight (V, D) that processes divide, for each one's own ids (*)."""

    @staticmethod
    def forward(ctx: Any, weight: Any, ids: Tensor, unit: Unit, padding: int | None) -> Tensor:
        rows = Rows(unit.computed(weight))
        torch._assert_async(
            ((ids >= 0) & (ids < rows.vocabulary)).all(), "ids of an embedding: out of its range"
        )
        ctx.unit, ctx.padding, ctx.like = unit, padding, weight.detach()
        ctx.save_for_backward(ids)
        found: Tensor = rows.local.new_empty(*ids.shape, rows.width)
        for part, _, values in rows.each():
            here = (ids >= part.start) & (ids < part.stop)
            inside = (ids - part.start).clamp(0, len(values) - 1)
            torch.where(here[..., None], values[inside], found, out=found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None, None, None]:
        (ids,) = ctx.saved_tensors
        unit, like = ctx.unit, ctx.like
        rows = Rows(like)
        gradient = gradient.to(unit.reduce_dtype or gradient.dtype)
        mine = gradient.new_zeros(rows.local.shape)
        if ctx.padding is not None:
            ids = ids.masked_fill(ids == ctx.padding, -1)
        for owner, part in enumerate(rows.slices):
            size = part.stop - part.start
            here = (ids >= part.start) & (ids < part.stop)
            inside = (ids - part.start).masked_fill(~here, size)
            # One row more, which takes no gradient.
            added = torch.ops.aten.embedding_dense_backward(
                gradient, inside, size + 1, size, False
            )[:size]
            dist.reduce(added, group=rows.group, group_dst=owner)
            if owner == rows.mine:
                mine += added
        return unit.gradient(rows.summed(mine), like), None, None, None
