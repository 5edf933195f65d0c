"""The token losses by the fused kernels of `fastkd_kernels`."""

from fastkd_kernels.common import unsupported
from fastkd_kernels.tokens.launch import Teacher
from fastkd_kernels.tokens.linear import linear_token_losses
from fastkd_kernels.tokens.operators import dense_token_losses
from fastkd_kernels.tokens.settings import LARGEST_TOP_K, TokenSettings
from torch import Tensor

from fastkd import watching
from fastkd.functional.options import TokenOptions
from fastkd.functional.sparse import SparseTeacher
from fastkd.functional.tokens import LinearTeacher, TokenLosses


def unavailable(
    student: Tensor, teacher: Tensor | LinearTeacher | SparseTeacher | None, options: TokenOptions
) -> str | None:
    if options.rank_weight and options.top_k > LARGEST_TOP_K:
        return f"the kernels rank at most top_k = {LARGEST_TOP_K} ids, not {options.top_k}"
    tensors = [student, teacher if isinstance(teacher, Tensor) else None]
    if isinstance(teacher, LinearTeacher):
        tensors += teacher
    return unsupported(*tensors, anywhere=watching.pretended().fused)


def dense_losses(
    student_logits: Tensor,
    teacher: Tensor | SparseTeacher | None,
    target: Tensor | None,
    counted: Tensor | None,
    options: TokenOptions,
) -> TokenLosses:
    settings = _settings(teacher, options)
    loss, ce, kd, rank, prediction = dense_token_losses(
        student_logits,
        _teacher(teacher),
        target,
        counted,
        settings,
        options.reduction,
        options.return_prediction,
    )
    return TokenLosses(loss, ce, kd, rank, prediction if options.return_prediction else None)


def linear_losses(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher: LinearTeacher | SparseTeacher | None,
    target: Tensor | None,
    counted: Tensor | None,
    options: TokenOptions,
) -> TokenLosses:
    hidden = weight = bias = None
    if isinstance(teacher, LinearTeacher):
        hidden, weight, bias = teacher
    loss, ce, kd, rank, prediction = linear_token_losses(
        (student_hidden, student_weight, student_bias),
        (hidden, weight, bias),
        _teacher(None if isinstance(teacher, LinearTeacher) else teacher),
        target,
        counted,
        _settings(teacher, options),
        options.reduction,
        options.return_prediction,
    )
    return TokenLosses(loss, ce, kd, rank, prediction if options.return_prediction else None)


def _teacher(teacher: Tensor | SparseTeacher | None) -> Teacher:
    if isinstance(teacher, SparseTeacher):
        return Teacher(ids=teacher.ids, log_probs=teacher.log_probs.float())
    return Teacher(logits=teacher)


def _settings(
    teacher: Tensor | LinearTeacher | SparseTeacher | None, options: TokenOptions
) -> TokenSettings:
    return TokenSettings(
        options.ce_weight,
        options.kd_weight,
        options.rank_weight,
        options.top_k,
        options.label_smoothing,
        options.student_temperature,
        options.teacher_temperature,
        teacher.rest if isinstance(teacher, SparseTeacher) else "drop",
    )
