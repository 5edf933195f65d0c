"""The dtypes in which the attention backends multiply and add."""

from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST = 2.0**-126  # log R means log max(R, SMALLEST) in every precision


def inside_dtype(tensors: Iterable[Tensor | None]) -> torch.dtype:
    """float64 where any tensor is, else float32: what everything but the operands is held in."""
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype to which autocast rounds the operands of matrix products; None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def operand_dtype(tensor: Tensor, autocast: torch.dtype | None) -> torch.dtype:
    """The dtype in which `tensor` enters a matrix product; autocast leaves float64 alone."""
    return tensor.dtype if autocast is None or tensor.dtype == torch.float64 else autocast
