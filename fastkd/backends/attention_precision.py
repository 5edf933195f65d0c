"""The dtypes in which the attention backends multiply and add."""

from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST = 2.0**-126  # log R means log max(R, SMALLEST) in every precision


def inside_dtype(tensors: Iterable[Tensor | None]) -> torch.dtype:
    """float64 where any tensor is, else float32: what everything but the operands is held in."""
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def operand_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype to which autocast, where it is on, rounds an operand of a matrix product."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype
