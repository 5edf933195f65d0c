"""Losses on the vocabulary: cross-entropy, word-level distillation and hierarchical ranking."""

from typing import Unpack

from torch import Tensor

from fastkd import watching
from fastkd.errors import InputError
from fastkd.functional import checks, remembered, token_checks
from fastkd.functional.calls import (
    Projected,
    TokenCall,
    TokenKeywords,
    TokenLosses,
    TokenOptions,
)
from fastkd.functional.dispatch import choose, token_backend
from fastkd.functional.divided import whole
from fastkd.functional.signatures import spelled_out
from fastkd.functional.sparse import SparseTeacher

PART = "token losses"  # what observers hear


@spelled_out(TokenOptions)
def token_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseTeacher | None = None,
    target: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    backend: str = "auto",
    **options: Unpack[TokenKeywords],
) -> TokenLosses:
    """ce_weight·ce + kd_weight·kd + rank_weight·rank + entropy_weight·entropy where counted.

    With z the student's logits, p = softmax(z/τ_s), q = softmax(teacher_logits/τ_t):

        ce   = cross_entropy(z, target, label_smoothing=label_smoothing)
        kd   = KL(q ‖ p) = Σ_v q_v (log q_v − log p_v), or another `divergence`, below
        entropy = −Σ_v p_v log p_v
        rank = Σ_i max(0, p(t_i) − p(t_1)) + Σ_ij 1[q(t_i) > q(s_j)] · max(0, p(s_j) − p(t_i))

    where t and s are the ids of the `top_k` largest teacher and student logits in falling order,
    equal logits by rising id; they are constants of differentiation (TIE-KD, arXiv 2305.08096,
    section 4). kd has no τ² factor. A component whose weight is 0 is not computed and reads 0.

    divergence, with beta β:
        "kl"               KL(q ‖ p)
        "reverse_kl"       KL(p ‖ q)
        "jsd"              β·KL(q ‖ m) + (1 − β)·KL(p ‖ m), m = βq + (1 − β)p, 0 < β < 1, by
                           default 0.5 (GKD, arXiv 2306.13649, equation 1)
        "skew_kl"          KL(q ‖ βq + (1 − β)p), 0 ≤ β < 1, by default 0.1
        "skew_reverse_kl"  KL(p ‖ βp + (1 − β)q), likewise (DistiLLM, arXiv 2402.03898)
        "tvd"              ½ Σ_v |p_v − q_v|, whose gradient at p_v = q_v is taken as 0

    Before everything else logits are multiplied by `*_logit_scale` and, with a `*_soft_cap` c,
    become c·tanh(z/c). `vocabulary` n: kd, rank and entropy are of the ids below n, each side
    normalised over them, of vocabularies that may differ beyond; ce stays over the student's whole,
    but its targets are ids below n too.

    student_logits: (..., V), any floating type
    teacher_logits: (..., V), or a SparseTeacher; needed where kd_weight or rank_weight is not 0
    target: (...) integers; needed where ce_weight is not 0, and then at counted positions in
        0..V − 1, or 0..n − 1 with `vocabulary`
    mask: (...) bool; counted = mask and target != ignore_index, whichever of the two is given
    reduction: "sum" | "mean" (over counted positions, at least 1) | "none" -> (...)
    return_prediction: also the argmax of the student's logits at counted positions, 0 elsewhere

    Logits of −inf ban an id: the smoothing mass is spread over the ids whose student logit is
    finite, a banned target gives ce = inf, a teacher logit above −inf at an id that the student
    bans makes kl infinite, a student logit above −inf at an id that the teacher bans reverse_kl
    (their gradient is that of the other ids), and the gradient at a logit of −inf is 0. A row
    without any finite student logit has an infinite kl and else 0; one without teacher mass 0. A
    position that does not count gives exact zeros, whatever its logits and target hold. A sparse
    teacher's t are taken from its listed ids, which must be at least `top_k`. Of its `rest`, "drop"
    serves kl alone, and reverse_kl needs "spread" or "tail".

    `reference` takes DTensors too, all of the tensors or none.

    Raises InputError for shapes, types or values that do not fit, and for a teacher that
    requires grad; BackendUnavailable where a backend asked for by name cannot serve the call.
    """
    given = token_checks.options_of(**options)
    layout = remembered.layout("logits", given, student_logits, teacher_logits, target, mask)
    known = remembered.passed(layout)
    if not known:
        token_checks.rows("student_logits", student_logits)
        beside = _beside(target, mask, teacher_logits)
        checks.divided_alike({"student_logits": student_logits, **beside})
        token_checks.positions(student_logits, target, mask)
    counted = _counted(target, mask, given.ignore_index)
    call = TokenCall(student_logits, teacher_logits, target, counted, given)
    if not known:
        token_checks.tokens(call)
        remembered.remember(layout)
    token_checks.values(call)
    served_by = choose("tokens", token_backend, backend, student_logits, call)
    return watching.named(PART, served_by.dense_losses, call)


@spelled_out(TokenOptions)
def linear_token_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | SparseTeacher | None = None,
    teacher_weight: Tensor | None = None,
    target: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
    **options: Unpack[TokenKeywords],
) -> TokenLosses:
    """`token_distillation_loss` of linear(hidden, weight, bias), the logits never held whole.

    student_hidden, student_weight, student_bias: (..., Ds), (V, Ds), (V,) or None
    teacher_hidden, teacher_weight, teacher_bias: (..., Dt), (V, Dt), (V,) or None; or
        teacher_hidden a SparseTeacher and the other two None

    A weight may be a DTensor that processes divide by rows (one Shard(0), and Replicate() in other
    dimensions of its mesh), as FSDP2's parameters are. Then all of them call together, each with
    its own positions and the same options; `torch` has the rows come in turn, so that one part of
    them is held at a time; their gradient is the sum over the processes, which must give the loss
    the same gradient. A bias that is a DTensor is gathered, and its gradient is such a sum too.

    Hidden states, weight and bias of one model have one floating type, unless autocast is on;
    everything after the matrix product is float32 (float64 where the student is). All else as
    in `token_distillation_loss`, errors included.
    """
    given = token_checks.options_of(**options)
    layout = remembered.layout(
        "hidden", given, student_hidden, student_weight, teacher_hidden, teacher_weight, target,
        student_bias, teacher_bias, mask,
    )  # fmt: skip
    known = remembered.passed(layout)
    student = Projected(student_hidden, student_weight, student_bias)
    if not known:
        token_checks.projected("student", student)
    student = student._replace(bias=whole(student_bias))
    teacher = _teacher(teacher_hidden, teacher_weight, teacher_bias)
    if not known:
        for name, value in _beside(target, mask, teacher).items():
            checks.undivided(name, value)  # as hidden states are
        token_checks.positions(student_hidden, target, mask)
    counted = _counted(target, mask, given.ignore_index)
    call = TokenCall(student, teacher, target, counted, given)
    if not known:
        token_checks.tokens(call)
        remembered.remember(layout)
    token_checks.values(call)
    served_by = choose("tokens", token_backend, backend, student_hidden, call)
    return watching.named(PART, served_by.linear_losses, call)


def _beside(target: Tensor | None, mask: Tensor | None, teacher: object) -> dict[str, Tensor]:
    """What lies beside the student's positions, by name."""
    given = {"target": target, "mask": mask}
    if isinstance(teacher, SparseTeacher):
        given |= {"SparseTeacher: ids": teacher.ids, "SparseTeacher: log_probs": teacher.log_probs}
    elif isinstance(teacher, Tensor):
        given["teacher_logits"] = teacher
    return {name: value for name, value in given.items() if value is not None}


def _counted(target: Tensor | None, mask: Tensor | None, ignore_index: int) -> Tensor | None:
    """mask and target != ignore_index as (...) bool; None where every position counts."""
    found = None
    if target is not None:
        found = target.long() != ignore_index  # which a narrow type cannot hold
    if mask is not None:
        found = mask if found is None else mask & found
    if found is not None and checks.readable(found) and bool(found.all()):
        return None
    return found


def _teacher(
    hidden: Tensor | SparseTeacher | None, weight: Tensor | None, bias: Tensor | None
) -> Projected | SparseTeacher | None:
    if hidden is None or isinstance(hidden, SparseTeacher):
        for name, value in (("teacher_weight", weight), ("teacher_bias", bias)):
            if value is not None:
                raise InputError(f"{name} is given without teacher_hidden to multiply it with")
        return hidden
    if weight is None:
        raise InputError("teacher_weight is needed with teacher_hidden")
    return Projected(hidden, weight, whole(bias))
