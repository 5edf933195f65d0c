"""What a backward of our own cannot serve."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def not_first_order(*tensors: Tensor | None) -> str | None:
    """Why a backward of our own cannot serve, or None: it knows neither tangents nor torch.func."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return "it has a backward of its own, which torch.func does not see; use 'reference'"
    if forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    ):
        return "it has no forward-mode derivative; use 'reference'"
    return None
