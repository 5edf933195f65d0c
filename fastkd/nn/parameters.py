"""How large a model is."""

from torch import nn


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """The number of a model's parameters, shared ones once; `trainable`: of those alone."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
