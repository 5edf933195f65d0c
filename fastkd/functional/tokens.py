"""Losses on the vocabulary: cross-entropy, word-level distillation and hierarchical ranking."""

from typing import NamedTuple

from torch import Tensor

from fastkd import watching
from fastkd.functional.dispatch import backend_module
from fastkd.functional.options import TokenOptions
from fastkd.functional.sparse import SparseTeacher
from fastkd.functional.tokens_inputs import (
    check_linear_teacher,
    check_options,
    check_projection,
    check_rows,
    check_target,
    check_teacher,
    check_top_k,
    counted_positions,
)

PART = "token losses"  # what observers hear


class TokenLosses(NamedTuple):
    """`loss` = ce_weight·ce + kd_weight·kd + rank_weight·rank; the components are detached.

    Scalars, or (...) with `reduction="none"`; `prediction` is (...) int64, or None.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    rank: Tensor
    prediction: Tensor | None


class LinearTeacher(NamedTuple):
    """A teacher's last hidden states and output projection: logits = hidden weightᵀ + bias."""

    hidden: Tensor  # (..., Dt)
    weight: Tensor  # (V, Dt)
    bias: Tensor | None  # (V,)


def token_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseTeacher | None = None,
    target: Tensor | None = None,
    *,
    ce_weight: float,
    kd_weight: float,
    rank_weight: float = 0.0,
    top_k: int = 5,
    label_smoothing: float = 0.0,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "sum",
    return_prediction: bool = False,
    backend: str = "auto",
) -> TokenLosses:
    """ce_weight·ce + kd_weight·kd + rank_weight·rank over the counted positions.

    With z the student's logits, p = softmax(z/τ_s), q = softmax(teacher_logits/τ_t):

        ce   = cross_entropy(z, target, label_smoothing=label_smoothing)
        kd   = Σ_v q_v (log q_v − log p_v)
        rank = Σ_i max(0, p(t_i) − p(t_1)) + Σ_ij 1[q(t_i) > q(s_j)] · max(0, p(s_j) − p(t_i))

    where t and s are the ids of the `top_k` largest teacher and student logits in falling order,
    equal logits by rising id; they are constants of differentiation (TIE-KD, arXiv 2305.08096,
    section 4). kd has no τ² factor. A component whose weight is 0 is not computed and reads 0.

    student_logits: (..., V), any floating type
    teacher_logits: (..., V), or a SparseTeacher; needed where kd_weight or rank_weight is not 0
    target: (...) integers; needed where ce_weight is not 0
    mask: (...) bool; counted = mask and target != ignore_index, whichever of the two is given
    reduction: "sum" | "mean" (over counted positions, at least 1) | "none" -> (...)
    return_prediction: also the argmax of the student's logits at counted positions, 0 elsewhere

    Logits of −inf ban an id: the smoothing mass is spread over the ids whose student logit is
    finite, a banned target gives ce = inf, a teacher logit above −inf at an id that the student
    bans gives kd = inf, and the gradient at a logit of −inf is 0. A position that does not count
    gives exact zeros, whatever its logits and target hold. A sparse teacher's t are taken from
    its listed ids, which must be at least `top_k`.

    Raises InputError for shapes, types or values that do not fit, and for a teacher that
    requires grad; BackendUnavailable where a backend asked for by name cannot serve the call.
    """
    options = TokenOptions(
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        rank_weight=rank_weight,
        top_k=top_k,
        label_smoothing=label_smoothing,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        ignore_index=ignore_index,
        reduction=reduction,
        return_prediction=return_prediction,
    )
    _, vocabulary = check_rows("student_logits", student_logits)
    check_options(options)
    check_top_k(options, vocabulary)
    counted = counted_positions(student_logits, target, mask, options)
    check_target(target, counted, vocabulary, options)
    check_teacher(teacher_logits, student_logits, vocabulary, counted, options)
    module = backend_module("tokens", backend, student_logits, teacher_logits, options)
    call = (student_logits, teacher_logits, target, counted, options)
    return watching.named(PART, module.dense_losses, *call)


def linear_token_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | SparseTeacher | None = None,
    teacher_weight: Tensor | None = None,
    target: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    ce_weight: float,
    kd_weight: float,
    rank_weight: float = 0.0,
    top_k: int = 5,
    label_smoothing: float = 0.0,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "sum",
    return_prediction: bool = False,
    backend: str = "auto",
) -> TokenLosses:
    """`token_distillation_loss` of linear(hidden, weight, bias), the logits never held whole.

    student_hidden, student_weight, student_bias: (..., Ds), (V, Ds), (V,) or None
    teacher_hidden, teacher_weight, teacher_bias: (..., Dt), (V, Dt), (V,) or None; or
        teacher_hidden a SparseTeacher and the other two None

    Hidden states, weight and bias of one model have one floating type, unless autocast is on;
    everything after the matrix product is float32 (float64 where the student is). All else as
    in `token_distillation_loss`, errors included.
    """
    options = TokenOptions(
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        rank_weight=rank_weight,
        top_k=top_k,
        label_smoothing=label_smoothing,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        ignore_index=ignore_index,
        reduction=reduction,
        return_prediction=return_prediction,
    )
    vocabulary = check_projection("student", student_hidden, student_weight, student_bias)
    check_options(options)
    check_top_k(options, vocabulary)
    counted = counted_positions(student_hidden, target, mask, options)
    check_target(target, counted, vocabulary, options)
    check_linear_teacher(
        teacher_hidden, teacher_weight, teacher_bias, student_hidden, vocabulary, counted, options
    )
    teacher: LinearTeacher | SparseTeacher | None = None
    if isinstance(teacher_hidden, SparseTeacher):
        teacher = teacher_hidden
    elif teacher_hidden is not None and teacher_weight is not None:
        teacher = LinearTeacher(teacher_hidden, teacher_weight, teacher_bias)
    module = backend_module("tokens", backend, student_hidden, teacher, options)
    student = (student_hidden, student_weight, student_bias)
    return watching.named(PART, module.linear_losses, *student, teacher, target, counted, options)
