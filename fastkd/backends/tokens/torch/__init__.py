"""The token losses in bounded memory, by a backward of their own, on any device.

Positions are walked in chunks. A chunk's logits, and the teacher's, lie in buffers that are
overwritten in place until they hold the gradient, which products with the hidden states turn into
the gradients of hidden states, weight and bias before the next chunk begins.
"""

from torch import Tensor

from fastkd.backends.tokens.torch.dense import DenseWalk
from fastkd.backends.tokens.torch.function import token_losses
from fastkd.backends.tokens.torch.linear import LinearWalk
from fastkd.functional.calls import Projected, TokenCall, TokenLosses


def unavailable(call: TokenCall[Tensor] | TokenCall[Projected]) -> None:
    """Serves every call."""


def dense_losses(call: TokenCall[Tensor]) -> TokenLosses:
    return token_losses(DenseWalk(call), call.student)


def linear_losses(call: TokenCall[Projected]) -> TokenLosses:
    return token_losses(LinearWalk(call), *call.student)
