"""The token losses in bounded memory, by a backward of their own, on any device.

Positions are walked in chunks. A chunk's logits, and the teacher's, lie in buffers that are
overwritten in place until they hold the gradient, which products with the hidden states turn into
the gradients of hidden states, weight and bias before the next chunk begins.
"""

from torch import Tensor

from fastkd.backends.tokens.torch.dense import DenseWalk
from fastkd.backends.tokens.torch.function import token_losses
from fastkd.backends.tokens.torch.linear import LinearWalk
from fastkd.functional.options import TokenOptions
from fastkd.functional.sparse import SparseTeacher
from fastkd.functional.tokens import LinearTeacher, TokenLosses


def dense_losses(
    student_logits: Tensor,
    teacher: Tensor | SparseTeacher | None,
    target: Tensor | None,
    counted: Tensor | None,
    options: TokenOptions,
) -> TokenLosses:
    walk = DenseWalk(student_logits, teacher, target, counted, options)
    return token_losses(walk, student_logits)


def linear_losses(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher: LinearTeacher | SparseTeacher | None,
    target: Tensor | None,
    counted: Tensor | None,
    options: TokenOptions,
) -> TokenLosses:
    vocabulary = student_weight.shape[0]
    walk = LinearWalk(student_hidden, vocabulary, teacher, target, counted, options)
    return token_losses(walk, student_hidden, student_weight, student_bias)
