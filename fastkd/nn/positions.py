"""Sinusoidal positions, halves of sines and cosines."""

import math

import torch
from torch import Tensor


def sinusoids(positions: int, width: int, *, first: int = 0, closed: bool = False) -> Tensor:
    """Sines in the first half of the width, cosines in the second: (positions, width), float32.

    Row i stands for position p = i + first. Column j < width/2 holds sin(p · w_j) and column
    j + width/2 holds cos(p · w_j), with w_j = 10000 ** (-j / n). The frequencies are those of
    the two layouts that Hugging Face Transformers reads:

    Marian: n = width/2, `closed=False`; positions begin at 0.
    M2M100: n = width/2 - 1, `closed=True` (the last frequency is exactly 1/10000); positions
        begin at the padding id + 1.
    """
    half = width // 2
    steps = max(half - 1, 1) if closed else half
    frequency = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / steps))
    position = torch.arange(first, first + positions, dtype=torch.float64)
    angle = position[:, None] * frequency  # (positions, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
