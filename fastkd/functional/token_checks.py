"""Checks of what the token losses are given, as in `checks`."""

from typing import Unpack

import torch
from torch import Tensor

from fastkd.errors import InputError
from fastkd.functional import checks, remembered
from fastkd.functional.calls import (
    BETAS,
    DIVERGENCES,
    SERVED,
    Projected,
    TokenCall,
    TokenKeywords,
    TokenOptions,
)
from fastkd.functional.divided import misplaced
from fastkd.functional.sparse import SparseTeacher


def rows(name: str, value: Tensor) -> None:
    """A floating tensor (..., size)."""
    checks.floating(name, value)
    if value.dim() == 0 or value.shape[-1] == 0:
        raise InputError(
            f"{name} must have shape (..., size) with size at least 1, not {tuple(value.shape)}"
        )


def projected(side: str, given: Projected) -> None:
    """`weight` (V, D) and `bias` (V,) fit `hidden` (..., D)."""
    hidden, weight, bias = given
    rows(f"{side}_hidden", hidden)
    checks.undivided(f"{side}_hidden", hidden)
    width = hidden.shape[-1]
    checks.floating(f"{side}_weight", weight)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != width:
        raise InputError(
            f"{side}_weight must have shape (V, {width}) as {side}_hidden's last dimension, not "
            f"{tuple(weight.shape)}"
        )
    if placements := misplaced(weight):
        raise InputError(
            f"{side}_weight must be divided by rows, one Shard(0) and else Replicate(), not placed "
            f"as {placements}"
        )
    parameters = {f"{side}_weight": weight}
    if bias is not None:
        checks.floating(f"{side}_bias", bias)
        parameters[f"{side}_bias"] = bias
        if tuple(bias.shape) != (weight.shape[0],):
            raise InputError(
                f"{side}_bias must have shape (V,) = ({weight.shape[0]},), not {tuple(bias.shape)}"
            )
    for name, value in parameters.items():
        checks.on(name, value, hidden.device)
        if value.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise InputError(
                f"{name} must be {hidden.dtype} as {side}_hidden, not {value.dtype}, unless "
                "autocast is on"
            )


@remembered.kept
def options_of(**given: Unpack[TokenKeywords]) -> TokenOptions:
    """The options, checked."""
    options = TokenOptions(**given)
    token_options(options)
    return options


def token_options(options: TokenOptions) -> None:
    for name in ("ce_weight", "kd_weight", "rank_weight", "entropy_weight"):
        checks.finite(name, getattr(options, name))
    for name in (
        "student_temperature",
        "teacher_temperature",
        "student_logit_scale",
        "teacher_logit_scale",
    ):
        checks.positive(name, getattr(options, name))
    for name in ("student_soft_cap", "teacher_soft_cap"):
        if getattr(options, name) is not None:
            checks.positive(name, getattr(options, name))
    if options.vocabulary is not None:
        checks.whole("vocabulary", options.vocabulary)
    smoothing = options.label_smoothing
    if not isinstance(smoothing, int | float) or not 0 <= smoothing <= 1:
        raise InputError(f"label_smoothing must be in 0..1, not {smoothing!r}")
    checks.one_of("reduction", options.reduction, checks.REDUCTIONS)
    checks.whole("top_k", options.top_k)
    if type(options.ignore_index) is not int:
        raise InputError(f"ignore_index must be a whole number, not {options.ignore_index!r}")
    divergence(options.divergence, options.beta)


def divergence(form: str, beta: float | None) -> None:
    checks.one_of("divergence", form, DIVERGENCES)
    if beta is None:
        return
    if form not in BETAS:
        raise InputError(f"beta belongs to {', '.join(BETAS)}; divergence={form!r} has none")
    checks.finite("beta", beta)
    if form == "jsd" and not 0 < beta < 1:
        raise InputError(
            f"beta of jsd must be between 0 and 1, not {beta}; at its ends take divergence='kl' "
            "or 'reverse_kl'"
        )
    if not 0 <= beta < 1:
        raise InputError(f"beta of {form} must be at least 0 and below 1, not {beta}")


def tokens(call: TokenCall[Tensor] | TokenCall[Projected]) -> None:
    """Everything but values about a call whose options and student are in order."""
    options, student = call.options, call.student
    where = student.hidden if isinstance(student, Projected) else student
    vocabulary = len(student.weight) if isinstance(student, Projected) else student.shape[-1]
    compared = vocabulary if options.vocabulary is None else options.vocabulary
    if compared > vocabulary:
        raise InputError(
            f"vocabulary must be at most the student's {vocabulary} ids, not {compared}"
        )
    if options.rank_weight and options.top_k > compared:
        raise InputError(f"top_k must be at most the vocabulary's {compared}, not {options.top_k}")
    if options.ce_weight and call.target is None:
        raise InputError("target is needed where ce_weight is not 0")
    teacher = call.teacher
    if teacher is None:
        if options.teaches:
            raise InputError("the teacher is needed where kd_weight or rank_weight is not 0")
    elif isinstance(teacher, SparseTeacher):
        _listed(teacher, where, compared, options)
    elif isinstance(teacher, Tensor):
        rows("teacher_logits", teacher)
        _share(options, "", teacher.shape[-1], vocabulary)
        same_positions("teacher_logits", teacher, teacher.shape[:-1], where)
        checks.constant(teacher_logits=teacher)
    else:
        projected("teacher", teacher)
        _share(options, "_weight", len(teacher.weight), vocabulary)
        same_positions("teacher_hidden", teacher.hidden, teacher.hidden.shape[:-1], where)
        hidden, weight, bias = teacher
        checks.constant(teacher_hidden=hidden, teacher_weight=weight, teacher_bias=bias)


def values(call: TokenCall[Tensor] | TokenCall[Projected]) -> None:
    """Ids lie in what is compared, where they are on the CPU."""
    options, student = call.options, call.student
    compared = options.vocabulary
    if compared is None:
        compared = len(student.weight) if isinstance(student, Projected) else student.shape[-1]
    if options.ce_weight and call.target is not None:
        _in_range("target", call.target, compared, call.counted)
    if options.teaches and isinstance(call.teacher, SparseTeacher):
        _in_range("SparseTeacher: ids", call.teacher.ids, compared, call.counted)


def _share(options: TokenOptions, rows: str, teacher: int, student: int) -> None:
    """That a teacher of so many ids, rows of `teacher{rows}`, can be compared."""
    if options.vocabulary is None and teacher != student:
        unit = "rows" if rows else "ids"
        raise InputError(
            f"teacher and student must share the vocabulary: teacher{rows} has {teacher} {unit}, "
            f"student{rows} {student}; vocabulary=n compares the first n"
        )
    if options.vocabulary is not None and options.vocabulary > teacher:
        raise InputError(
            f"vocabulary must be at most the teacher's {teacher} ids, not {options.vocabulary}"
        )


def _listed(
    teacher: SparseTeacher,
    student: Tensor,
    vocabulary: int,
    options: TokenOptions,
) -> None:
    for value in (teacher.ids, teacher.log_probs):
        same_positions("SparseTeacher", value, value.shape[:-1], student)
    if not options.teaches:
        return
    listed = teacher.ids.shape[-1]
    if listed > vocabulary:
        raise InputError(f"SparseTeacher lists {listed} ids of a vocabulary of {vocabulary}")
    if options.rank_weight and listed < options.top_k:
        raise InputError(
            f"SparseTeacher: ranking needs at least top_k = {options.top_k} ids, not {listed}"
        )
    if options.kd_weight and options.form not in SERVED[teacher.rest]:
        able = [rest for rest, forms in SERVED.items() if options.form in forms]
        raise InputError(
            f"SparseTeacher: divergence={options.form!r} needs rest={' or '.join(map(repr, able))},"
            f" not {teacher.rest!r}"
        )


def positions(student: Tensor, target: Tensor | None, mask: Tensor | None) -> None:
    """`target` and `mask` are of the student's positions."""
    if target is not None:
        checks.integers("target", target)
        same_positions("target", target, target.shape, student)
    if mask is not None:
        checks.mask("mask", mask)
        same_positions("mask", mask, mask.shape, student)


def same_positions(name: str, value: Tensor, positions: torch.Size, student: Tensor) -> None:
    """`positions` of `value` (...) or (..., size) against those of the student (..., size)."""
    expected = student.shape[:-1]
    if positions != expected:
        where = "" if value.shape == positions else " before its last dimension"
        raise InputError(
            f"{name} must have the student's positions {tuple(expected)}{where}, not "
            f"{tuple(value.shape)}"
        )
    checks.on(name, value, student.device)


def _in_range(name: str, ids: Tensor, vocabulary: int, counted: Tensor | None) -> None:
    if not checks.readable(ids) or ids.numel() == 0:
        return
    ids = ids.long()  # a narrow type may not hold the vocabulary's size
    low, high = ids.aminmax()
    if int(low) >= 0 and int(high) < vocabulary:
        return
    wrong = (ids < 0) | (ids >= vocabulary)
    if counted is not None:
        wrong &= counted if ids.dim() == counted.dim() else counted.unsqueeze(-1)
    if wrong.any():
        raise InputError(
            f"{name} must be in 0..{vocabulary - 1} at counted positions, not {ids[wrong][0]}"
        )
