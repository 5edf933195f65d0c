"""Weights that are divided over processes by rows, as FSDP2 divides them."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_divided(value: object) -> bool:
    """Whether it is a DTensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def misplaced(weight: Any) -> tuple[object, ...]:
    """A DTensor's placements, unless one divides rows and the others hold copies."""
    if not is_divided(weight):
        return ()
    placements: tuple[Any, ...] = tuple(weight.placements)
    rows = sum(placed.is_shard(0) for placed in placements)
    copies = sum(placed.is_replicate() for placed in placements)
    return () if rows == 1 and copies == len(placements) - 1 else placements


def whole(weight: Any) -> Any:
    """All rows of a tensor, or None as it is; their gradient is summed over the processes."""
    if not is_divided(weight):
        return weight
    from torch.distributed.tensor import Partial

    summed = [Partial()] * weight.device_mesh.ndim
    return weight.full_tensor(grad_placements=summed)


def divided_as(part: Tensor, like: Any) -> "DTensor":
    """The DTensor of which `part` is this process's, divided as `like` is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


class Rows:
    """The rows of a weight (V, D), by the process that holds them.

    weight: a DTensor of one Shard(0), beside dimensions of its mesh in which it is replicated
    product: their type as they come; None: the weight's
    """

    def __init__(self, weight: Any, product: torch.dtype | None = None) -> None:
        mesh, placements = weight.device_mesh, weight.placements
        self.weight, self.product = weight, product or weight.dtype
        self.local = weight.detach().to_local().to(self.product)
        self.vocabulary, self.width = weight.shape
        (dimension,) = (i for i, placed in enumerate(placements) if placed.is_shard(0))
        self.group = mesh.get_group(dimension)
        self.copies = [mesh.get_group(i) for i in range(mesh.ndim) if i != dimension]
        self.mine = mesh.get_local_rank(dimension)
        step = -(-self.vocabulary // mesh.size(dimension))
        starts = range(0, self.vocabulary, step)  # the last processes may hold none
        self.slices = [slice(start, min(start + step, self.vocabulary)) for start in starts]

    def each(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Which rows, who holds them, and they themselves; the next ones are on their way."""
        coming = self._sent(0)
        for owner, rows in enumerate(self.slices):
            part, sending = coming
            if owner + 1 < len(self.slices):
                coming = self._sent(owner + 1)
            sending.wait()
            yield rows, owner, part
            del part

    def _sent(self, owner: int) -> tuple[Tensor, Any]:
        rows = self.slices[owner]
        part = self.local
        if owner != self.mine:
            part = part.new_empty(rows.stop - rows.start, self.width)
        return part, dist.broadcast(part, group=self.group, group_src=owner, async_op=True)

    def summed(self, gradient: Tensor) -> Tensor:
        """What this process has of a gradient's rows, summed over the copies too."""
        for group in self.copies:
            dist.all_reduce(gradient, group=group)
        return gradient

    def whole(self, gradient: Tensor) -> Tensor:
        """The gradient whose rows of this process these are."""
        return divided_as(self.summed(gradient), self.weight)
