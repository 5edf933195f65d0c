"""What a walk takes from each chunk of rows."""

from typing import NamedTuple

from torch import Tensor


class RowLosses(NamedTuple):
    """Components (R,), None where their weight is 0, and what else was asked for."""

    ce: Tensor | None
    kd: Tensor | None
    rank: Tensor | None
    prediction: Tensor | None  # (R,)
    gradient: Tensor | None  # (R, V) of the weighted sum of the components
