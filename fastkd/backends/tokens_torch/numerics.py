"""Small steps that several parts of the backend share."""

import torch
from torch import Tensor

BANNED = -torch.inf


def banned_ids(logits: Tensor) -> Tensor | None:
    """Where `logits` (R, V) are −inf; None where a look on the CPU finds none."""
    if logits.device.type == "cpu" and not (logits.numel() and logits.amin() == BANNED):
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
