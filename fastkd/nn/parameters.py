"""Operations on all of a model's parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """The number of a model's parameters, shared ones once; `trainable`: of those alone."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@torch.no_grad()
def move_average(average: Sequence[Tensor], parameters: Sequence[Tensor], decay: float) -> None:
    """average ← decay · average + (1 − decay) · parameters, in the average's type, in one call."""
    given = [p.detach().to(a.dtype) for a, p in zip(average, parameters, strict=True)]
    torch._foreach_lerp_(list(average), given, 1 - decay)
