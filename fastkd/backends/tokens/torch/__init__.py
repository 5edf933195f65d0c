"""The token losses in bounded memory, by a backward of their own, on any device.

Positions are walked in chunks. A chunk's logits, and the teacher's, lie in buffers that are
overwritten in place until they hold the gradient, which products with the hidden states turn into
the gradients of hidden states, weight and bias before the next chunk begins.
"""

import torch
from torch import Tensor

from fastkd.backends.early import not_first_order, not_plain
from fastkd.backends.tokens.torch.dense import DenseWalk
from fastkd.backends.tokens.torch.function import token_losses
from fastkd.backends.tokens.torch.linear import LinearWalk
from fastkd.backends.tokens.torch.operator import traced_losses
from fastkd.functional.calls import Projected, TokenCall, TokenLosses


def unavailable(call: TokenCall[Tensor] | TokenCall[Projected]) -> str | None:
    """Why the backend cannot serve the call, or None."""
    learned = call.student if isinstance(call.student, Projected) else (call.student,)
    return not_plain(learned[0]) or not_first_order(*learned)


def dense_losses(call: TokenCall[Tensor]) -> TokenLosses:
    if torch.compiler.is_compiling():
        return traced_losses(call)
    return token_losses(DenseWalk(call), call.student)


def linear_losses(call: TokenCall[Projected]) -> TokenLosses:
    if torch.compiler.is_compiling():
        return traced_losses(call)
    return token_losses(LinearWalk(call), *call.student)
