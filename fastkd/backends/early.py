"""What a backward of our own cannot serve."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastkd.functional.divided import is_divided


def not_plain(tensor: object) -> str | None:
    """Why a walk over a tensor's memory cannot serve, or None: it is a DTensor."""
    if is_divided(tensor):
        return (
            "it takes plain tensors, not DTensors; expected full_tensor(), backend='reference', or "
            "linear_token_distillation_loss with a weight that is divided by rows"
        )
    return None


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
