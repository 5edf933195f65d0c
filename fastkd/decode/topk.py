"""The largest few of many."""

from torch import Tensor


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`x.topk(count)`: values and indices of the largest of the last dimension, falling."""
    return x.topk(count)
