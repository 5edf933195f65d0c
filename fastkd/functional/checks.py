"""Checks of what the losses are given; every failure is one line naming an argument.

Values are checked where they are on the CPU; elsewhere that would wait for the device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd import watching
from fastkd.errors import InputError
from fastkd.functional.calls import (
    BETAS,
    DIVERGENCES,
    SERVED,
    AlignmentCall,
    AlignmentOptions,
    Maps,
    Projected,
    QueryKey,
    TokenCall,
    TokenOptions,
)
from fastkd.functional.sparse import SparseTeacher

REDUCTIONS = ("sum", "mean", "none")
ALIGNMENT_REDUCTIONS = (*REDUCTIONS, "rows")
NORMALIZATIONS = ("map", "row", "mixture")
PADDINGS = ("exclude", "include")


def floating(name: str, value: object) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{name} must be a floating point tensor, not {_kind(value)}")


def integers(name: str, value: object) -> None:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()
    if not whole or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise InputError(f"{name} must be an integer tensor, not {_kind(value)}")


def constant(**teacher: Tensor | None) -> None:
    for name, value in teacher.items():
        if value is not None and value.requires_grad:
            raise InputError(
                f"{name} requires grad, but the teacher is a constant: run it under "
                "torch.no_grad() or pass it detached"
            )


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def finite(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {value!r}")


def positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a positive number, not {value!r}")


def whole(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, not {value!r}")


def readable(tensor: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not watching.pretended().fused
    )


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _on(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise InputError(f"{name} must be on {device}, not {value.device}")


# Attention alignment.


def layers(name: str, value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`value` as a tuple of per-layer tensors (B, heads, ., .) that agree but for the heads."""
    tensors = (value,) if isinstance(value, Tensor) else tuple(value)
    if not tensors:
        raise InputError(f"{name} holds no tensor")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} must hold tensors, not {type(tensor).__name__}")
        if tensor.dim() != 4:
            raise InputError(f"{name} must have 4 dimensions, not shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise InputError(f"{name} must be floating point, not {tensor.dtype}")
        first = tensors[0]
        if _without_heads(tensor) != _without_heads(first) or tensor.device != first.device:
            raise InputError(
                f"the layers of {name} must agree in device and in all but the heads: "
                f"{tuple(first.shape)} on {first.device}, {tuple(tensor.shape)} on {tensor.device}"
            )
    return tensors


def _without_heads(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0], *tensor.shape[2:])


def lengths(name: str, value: Tensor | None, batch: int, longest: int) -> Tensor | None:
    """`value` as int64, or None where it is on the CPU and holds no padding.

    Values are checked where they are on the CPU; elsewhere they are clamped, which needs no
    synchronisation.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"{name} must be integers, not {value.dtype}")
    if tuple(value.shape) != (batch,):
        raise InputError(
            f"{name} must have shape (batch,) = ({batch},), not {tuple(value.shape)}; attention "
            "with left padding or another mask goes through alignment_loss_from_maps"
        )
    value = value.to(torch.int64)
    if not readable(value):
        return value.clamp(0, longest)
    least, most = (int(value.min()), int(value.max())) if batch else (longest, longest)
    if least < 0 or most > longest:
        raise InputError(f"{name} must be in 0..{longest}, not {least}..{most}")
    return value if least < longest else None


def mask(
    name: str,
    value: object,
    shape: tuple[int, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise InputError(f"{name} must be a bool tensor, not {_kind(value)}")
    if shape is not None and tuple(value.shape) != shape:
        raise InputError(f"{name} must have shape {shape}, not {tuple(value.shape)}")
    if device is not None:
        _on(name, value, device)


def query_key(side: str, query: Sequence[Tensor], key: Sequence[Tensor]) -> None:
    first, other = query[0], key[0]
    agree = first.shape[0] == other.shape[0] and first.shape[3] == other.shape[3]
    if not agree or first.device != other.device:
        raise InputError(
            f"{side}_query and {side}_key must agree in batch, head size and device: "
            f"{tuple(first.shape)} on {first.device}, {tuple(other.shape)} on {other.device}"
        )
    maps, key_heads = (sum(layer.shape[1] for layer in layers) for layers in (query, key))
    if key_heads == 0 or maps % key_heads:
        raise InputError(
            f"{side}_query's {maps} heads must be a multiple of {side}_key's {key_heads}"
        )


def alignment(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> None:
    """Everything about a call whose sides are each in order."""
    student, teacher, weight, bias = call.student, call.teacher, call.weight, call.bias
    ours, theirs = student.tensors[0], teacher.tensors[0]
    for what, mine, other in (
        ("batch", ours.shape[0], theirs.shape[0]),
        ("queries", student.queries, teacher.queries),
        ("keys", student.keys, teacher.keys),
        ("device", ours.device, theirs.device),
    ):
        if mine != other:
            raise InputError(f"student and teacher must agree in {what}: {mine} and {other}")
    if weight is None and student.maps != teacher.maps:
        raise InputError(
            f"without a weight, student and teacher need the same number of maps: "
            f"{student.maps} and {teacher.maps}"
        )
    shape = (teacher.maps, student.maps)
    _parameter("weight", weight, "(teacher maps, student maps)", shape, ours.device)
    _parameter("bias", bias, "(teacher maps,)", shape[:1], ours.device)
    alignment_options(call.options, bias is not None)
    if call.options.causal and student.queries != student.keys:
        raise InputError(
            f"causal needs as many queries as keys, not {student.queries} and {student.keys}"
        )


def _parameter(
    name: str, value: Tensor | None, expected: str, shape: tuple[int, ...], device: torch.device
) -> None:
    if value is None:
        return
    floating(name, value)
    if tuple(value.shape) != shape:
        raise InputError(f"{name} must have shape {expected} = {shape}, not {tuple(value.shape)}")
    _on(name, value, device)


def alignment_options(options: AlignmentOptions, bias: bool) -> None:
    one_of("normalization", options.normalization, NORMALIZATIONS)
    one_of("padding", options.padding, PADDINGS)
    one_of("reduction", options.reduction, ALIGNMENT_REDUCTIONS)
    positive("temperature", options.temperature)
    if options.normalization == "mixture" and bias:
        raise InputError("bias: normalization 'mixture' has none")
    if options.normalization == "mixture" and options.temperature != 1:
        raise InputError(
            f"temperature: normalization 'mixture' has none, but got {options.temperature!r}"
        )


# Token losses.


def rows(name: str, value: Tensor) -> None:
    """A floating tensor (..., size)."""
    floating(name, value)
    if value.dim() == 0 or value.shape[-1] == 0:
        raise InputError(
            f"{name} must have shape (..., size) with size at least 1, not {tuple(value.shape)}"
        )


def projected(side: str, given: Projected) -> None:
    """`weight` (V, D) and `bias` (V,) fit `hidden` (..., D)."""
    hidden, weight, bias = given
    rows(f"{side}_hidden", hidden)
    width = hidden.shape[-1]
    floating(f"{side}_weight", weight)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != width:
        raise InputError(
            f"{side}_weight must have shape (V, {width}) as {side}_hidden's last dimension, not "
            f"{tuple(weight.shape)}"
        )
    parameters = {f"{side}_weight": weight}
    if bias is not None:
        floating(f"{side}_bias", bias)
        parameters[f"{side}_bias"] = bias
        if tuple(bias.shape) != (weight.shape[0],):
            raise InputError(
                f"{side}_bias must have shape (V,) = ({weight.shape[0]},), not {tuple(bias.shape)}"
            )
    for name, value in parameters.items():
        _on(name, value, hidden.device)
        if value.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise InputError(
                f"{name} must be {hidden.dtype} as {side}_hidden, not {value.dtype}, unless "
                "autocast is on"
            )


def token_options(options: TokenOptions) -> None:
    for name in ("ce_weight", "kd_weight", "rank_weight", "entropy_weight"):
        finite(name, getattr(options, name))
    for name in (
        "student_temperature",
        "teacher_temperature",
        "student_logit_scale",
        "teacher_logit_scale",
    ):
        positive(name, getattr(options, name))
    for name in ("student_soft_cap", "teacher_soft_cap"):
        if getattr(options, name) is not None:
            positive(name, getattr(options, name))
    if options.vocabulary is not None:
        whole("vocabulary", options.vocabulary)
    smoothing = options.label_smoothing
    if not isinstance(smoothing, int | float) or not 0 <= smoothing <= 1:
        raise InputError(f"label_smoothing must be in 0..1, not {smoothing!r}")
    one_of("reduction", options.reduction, REDUCTIONS)
    whole("top_k", options.top_k)
    divergence(options.divergence, options.beta)


def divergence(form: str, beta: float | None) -> None:
    one_of("divergence", form, DIVERGENCES)
    if beta is None:
        return
    if form not in BETAS:
        raise InputError(f"beta belongs to {', '.join(BETAS)}; divergence={form!r} has none")
    finite("beta", beta)
    if form == "jsd" and not 0 < beta < 1:
        raise InputError(
            f"beta of jsd must be between 0 and 1, not {beta}; at its ends take divergence='kl' "
            "or 'reverse_kl'"
        )
    if not 0 <= beta < 1:
        raise InputError(f"beta of {form} must be at least 0 and below 1, not {beta}")


def tokens(call: TokenCall[Tensor] | TokenCall[Projected]) -> None:
    """Everything about a call whose student is in order."""
    options, student = call.options, call.student
    positions = student.hidden if isinstance(student, Projected) else student
    vocabulary = len(student.weight) if isinstance(student, Projected) else student.shape[-1]
    token_options(options)
    compared = vocabulary if options.vocabulary is None else options.vocabulary
    if compared > vocabulary:
        raise InputError(
            f"vocabulary must be at most the student's {vocabulary} ids, not {compared}"
        )
    if options.rank_weight and options.top_k > compared:
        raise InputError(f"top_k must be at most the vocabulary's {compared}, not {options.top_k}")
    if options.ce_weight:
        if call.target is None:
            raise InputError("target is needed where ce_weight is not 0")
        _in_range("target", call.target, compared, call.counted)
    teacher = call.teacher
    if teacher is None:
        if options.teaches:
            raise InputError("the teacher is needed where kd_weight or rank_weight is not 0")
    elif isinstance(teacher, SparseTeacher):
        _listed(teacher, positions, compared, call.counted, options)
    elif isinstance(teacher, Tensor):
        rows("teacher_logits", teacher)
        _share(options, "", teacher.shape[-1], vocabulary)
        same_positions("teacher_logits", teacher, teacher.shape[:-1], positions)
        constant(teacher_logits=teacher)
    else:
        projected("teacher", teacher)
        _share(options, "_weight", len(teacher.weight), vocabulary)
        same_positions("teacher_hidden", teacher.hidden, teacher.hidden.shape[:-1], positions)
        hidden, weight, bias = teacher
        constant(teacher_hidden=hidden, teacher_weight=weight, teacher_bias=bias)


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
    counted: Tensor | None,
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
    _in_range("SparseTeacher: ids", teacher.ids, vocabulary, counted)


def same_positions(name: str, value: Tensor, positions: torch.Size, student: Tensor) -> None:
    """`positions` of `value` (...) or (..., size) against those of the student (..., size)."""
    expected = student.shape[:-1]
    if positions != expected:
        where = "" if value.shape == positions else " before its last dimension"
        raise InputError(
            f"{name} must have the student's positions {tuple(expected)}{where}, not "
            f"{tuple(value.shape)}"
        )
    _on(name, value, student.device)


def _in_range(name: str, ids: Tensor, vocabulary: int, counted: Tensor | None) -> None:
    if not readable(ids) or ids.numel() == 0:
        return
    ids = ids.long()  # a narrow type may not hold the vocabulary's size
    if ids.min() >= 0 and ids.max() < vocabulary:
        return
    wrong = (ids < 0) | (ids >= vocabulary)
    if counted is not None:
        wrong &= counted if ids.dim() == counted.dim() else counted.unsqueeze(-1)
    if wrong.any():
        raise InputError(
            f"{name} must be in 0..{vocabulary - 1} at counted positions, not {ids[wrong][0]}"
        )
