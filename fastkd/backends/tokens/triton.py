"""The token losses by the fused kernels of `fastkd_kernels`."""

from fastkd_kernels.common import unsupported
from fastkd_kernels.tokens.launch import Teacher
from fastkd_kernels.tokens.linear import linear_token_losses
from fastkd_kernels.tokens.operators import dense_token_losses
from fastkd_kernels.tokens.settings import LARGEST_TOP_K, TokenSettings
from torch import Tensor

from fastkd import watching
from fastkd.backends.early import not_first_order, not_plain
from fastkd.functional import remembered
from fastkd.functional.calls import Projected, TokenCall, TokenLosses, TokenOptions
from fastkd.functional.divided import is_divided
from fastkd.functional.sparse import SparseTeacher

# Of jsd, which is of that size: its gradient of a smaller one is below the numbers of float32.
LEAST_BETA = 2.0**-100


def unavailable(call: TokenCall[Tensor] | TokenCall[Projected]) -> str | None:
    """Why the kernels cannot serve the call, or None."""
    options = call.options
    student = call.student if isinstance(call.student, Projected) else (call.student,)
    reason: str | None
    if reason := not_plain(student[0]) or not_first_order(*student):
        return reason
    if options.rank_weight and options.top_k > LARGEST_TOP_K:
        return f"the kernels rank at most top_k = {LARGEST_TOP_K} ids, not {options.top_k}"
    if options.kd_weight and options.form == "jsd" and options.skew < LEAST_BETA:
        return (
            f"jsd with a beta of {options.skew} is below what float32 can hold a gradient of: "
            f"the kernels take it from {LEAST_BETA:.1g} on"
        )
    for side in (call.student, call.teacher):
        if isinstance(side, Projected) and is_divided(side.weight):
            return "the kernels do not take a weight divided over processes; backend='torch' does"
    tensors = [call.student.hidden if isinstance(call.student, Projected) else call.student]
    if isinstance(call.teacher, Projected):
        tensors += [each for each in call.teacher if each is not None]
    elif isinstance(call.teacher, Tensor):
        tensors.append(call.teacher)
    reason = unsupported(*tensors, anywhere=watching.pretended().fused)
    return reason


def dense_losses(call: TokenCall[Tensor]) -> TokenLosses:
    options = call.options
    found = dense_token_losses(
        call.student,
        _teacher(call.teacher),
        call.target,
        call.counted,
        _settings(options, _rest(call.teacher)),
        options.reduction,
        options.return_prediction,
    )
    return TokenLosses(*found)


def linear_losses(call: TokenCall[Projected]) -> TokenLosses:
    options, teacher = call.options, call.teacher
    found = linear_token_losses(
        call.student,
        teacher if isinstance(teacher, Projected) else (None, None, None),
        _teacher(None if isinstance(teacher, Projected) else teacher),
        call.target,
        call.counted,
        _settings(options, _rest(teacher)),
        options.reduction,
        options.return_prediction,
    )
    return TokenLosses(*found)


def _teacher(teacher: Tensor | SparseTeacher | None) -> Teacher:
    if isinstance(teacher, SparseTeacher):
        return Teacher(ids=teacher.ids, log_probs=teacher.log_probs.float())
    return Teacher(logits=teacher)


def _rest(teacher: Tensor | Projected | SparseTeacher | None) -> str:
    return teacher.rest if isinstance(teacher, SparseTeacher) else "drop"


@remembered.kept
def _settings(options: TokenOptions, rest: str) -> TokenSettings:
    return TokenSettings(
        options.ce_weight,
        options.kd_weight,
        options.rank_weight,
        options.top_k,
        options.label_smoothing,
        options.student_temperature,
        options.teacher_temperature,
        options.entropy_weight,
        rest,
        options.form,
        options.skew,
        options.student_logit_scale,
        options.teacher_logit_scale,
        options.student_soft_cap,
        options.teacher_soft_cap,
        options.vocabulary,
    )
