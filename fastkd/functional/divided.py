"""Weights of output projections that are divided over processes by rows, as FSDP2 divides them."""

import sys
from typing import Any

from torch import Tensor


def is_divided(weight: Tensor) -> bool:
    tensor: Any = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(weight, tensor.DTensor)


def whole(weight: Any) -> Tensor:
    """All rows; their gradient is summed over the processes."""
    if not is_divided(weight):
        return weight  # type: ignore[no-any-return]
    from torch.distributed.tensor import Partial

    summed = [Partial()] * weight.device_mesh.ndim
    return weight.full_tensor(grad_placements=summed)  # type: ignore[no-any-return]
