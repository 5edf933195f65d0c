"""Output projections that are divided over processes by rows, as FSDP2 divides them."""

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_divided(weight: Tensor | None) -> bool:
    tensor: Any = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(weight, tensor.DTensor)


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
