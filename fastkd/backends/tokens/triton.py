"""The token losses by the fused kernels of `fastkd_kernels`."""

from fastkd_kernels.common import unsupported
from fastkd_kernels.tokens.launch import Teacher
from fastkd_kernels.tokens.linear import linear_token_losses
from fastkd_kernels.tokens.operators import dense_token_losses
from fastkd_kernels.tokens.settings import LARGEST_TOP_K, TokenSettings
from torch import Tensor

from fastkd import watching
from fastkd.backends.early import not_first_order
from fastkd.functional.calls import Projected, TokenCall, TokenLosses, TokenOptions
from fastkd.functional.divided import is_divided
from fastkd.functional.sparse import SparseTeacher

_UNSERVED = (
    "student_soft_cap",
    "teacher_soft_cap",
    "student_logit_scale",
    "teacher_logit_scale",
    "vocabulary",
)
# Of jsd: for less, the logarithm of its mixture, about β, has only the digits of a number near 1.
LEAST_BETA = 1e-3
_PLAIN = TokenOptions(ce_weight=1.0, kd_weight=1.0)


def unavailable(call: TokenCall[Tensor] | TokenCall[Projected]) -> str | None:
    """Why the kernels cannot serve the call, or None."""
    options = call.options
    student = call.student if isinstance(call.student, Projected) else (call.student,)
    reason: str | None
    if reason := not_first_order(*student):
        return reason
    if options.rank_weight and options.top_k > LARGEST_TOP_K:
        return f"the kernels rank at most top_k = {LARGEST_TOP_K} ids, not {options.top_k}"
    for name in _UNSERVED:
        if getattr(options, name) != getattr(_PLAIN, name):
            return f"the kernels do not take {name}; backend='torch' does"
    mixes = options.kd_weight != 0 and options.form == "jsd"
    if mixes and not LEAST_BETA <= options.skew <= 1 - LEAST_BETA:
        return (
            f"the kernels lose digits of jsd with a beta outside {LEAST_BETA}..{1 - LEAST_BETA}, "
            f"such as {options.skew}; backend='torch' keeps them"
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
        _settings(call.teacher, options),
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
        _settings(teacher, options),
        options.reduction,
        options.return_prediction,
    )
    return TokenLosses(*found)


def _teacher(teacher: Tensor | SparseTeacher | None) -> Teacher:
    if isinstance(teacher, SparseTeacher):
        return Teacher(ids=teacher.ids, log_probs=teacher.log_probs.float())
    return Teacher(logits=teacher)


def _settings(
    teacher: Tensor | Projected | SparseTeacher | None, options: TokenOptions
) -> TokenSettings:
    return TokenSettings(
        options.ce_weight,
        options.kd_weight,
        options.rank_weight,
        options.top_k,
        options.label_smoothing,
        options.student_temperature,
        options.teacher_temperature,
        options.entropy_weight,
        teacher.rest if isinstance(teacher, SparseTeacher) else "drop",
        options.form,
        options.skew,
    )
