"""Dropout."""

import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`."""
    return F.dropout(x, probability) if training and probability else x
