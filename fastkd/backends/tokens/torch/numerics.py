"""Small steps that several parts of the backend share."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

BANNED = -torch.inf
ROWS = 32


def at_hand(tensor: Tensor) -> bool:
    """Whether Python may look at values without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def rounded(rows: int, device: torch.device) -> int:
    """Rows of a matrix product that shall have `rows`.

    On a CPU products of 16-bit numbers are compiled for each shape, which takes longer than to
    compute them; so shapes of more than a few rows are made to come again.
    """
    return rows if device.type != "cpu" or rows <= ROWS else -(-rows // ROWS) * ROWS


def banned_ids(logits: Tensor) -> Tensor | None:
    """Where `logits` (R, V) are −inf; None where a look finds none."""
    if at_hand(logits) and not (logits.numel() and logits.amin() == BANNED):
        return None
    return logits == BANNED


def softmax_(logits: Tensor) -> Tensor:
    """softmax over the last dimension; in place on the CPU, whose kernel allows it."""
    if logits.device.type == "cpu":
        return torch.softmax(logits, -1, out=logits)
    return torch.softmax(logits, -1)


def log_z(probabilities: Tensor) -> Tensor:
    """log Σ exp (R, 1) of the logits behind a softmax, counted from their maximum."""
    return -probabilities.amax(-1, keepdim=True).log()


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The type of matrix products with `tensor`: its own, or that of autocast."""
    if tensor.dtype == torch.float64 or not _autocast_is_on(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    if not _autocast_is_on(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _autocast_is_on(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
