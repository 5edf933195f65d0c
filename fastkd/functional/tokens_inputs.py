"""Checks of what the token losses are given; every failure is one line naming an argument.

Values are checked where they are on the CPU; elsewhere that would wait for the device.
"""

import math

import torch
from torch import Tensor

from fastkd.errors import InputError
from fastkd.functional.options import TokenOptions
from fastkd.functional.sparse import SparseTeacher

REDUCTIONS = ("sum", "mean", "none")
CONSTANT = "requires grad, but the teacher is a constant: run it under torch.no_grad()"


def check_options(options: TokenOptions) -> None:
    for name in ("ce_weight", "kd_weight", "rank_weight"):
        value = getattr(options, name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, not {value!r}")
    for name in ("student_temperature", "teacher_temperature"):
        value = getattr(options, name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{name} must be a positive number, not {value!r}")
    if (
        not isinstance(options.label_smoothing, int | float)
        or not 0 <= options.label_smoothing <= 1
    ):
        raise InputError(f"label_smoothing must be in 0..1, not {options.label_smoothing!r}")
    if options.reduction not in REDUCTIONS:
        raise InputError(
            f"reduction must be one of {', '.join(REDUCTIONS)}, not {options.reduction!r}"
        )
    if not isinstance(options.top_k, int) or options.top_k < 1:
        raise InputError(f"top_k must be a positive integer, not {options.top_k!r}")


def check_top_k(options: TokenOptions, vocabulary: int) -> None:
    if options.rank_weight and options.top_k > vocabulary:
        raise InputError(
            f"top_k must be at most the vocabulary's {vocabulary}, not {options.top_k}"
        )


def check_rows(name: str, value: Tensor) -> tuple[torch.Size, int]:
    """The positions and the last dimension of a floating tensor (..., size)."""
    _floating(name, value)
    if value.dim() == 0 or value.shape[-1] == 0:
        raise InputError(
            f"{name} must have shape (..., size) with size at least 1, not {tuple(value.shape)}"
        )
    return value.shape[:-1], value.shape[-1]


def check_projection(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """The vocabulary that `weight` (V, D) and `bias` (V,) map `hidden` (..., D) to."""
    width = check_rows(f"{side}_hidden", hidden)[1]
    _floating(f"{side}_weight", weight)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != width:
        raise InputError(
            f"{side}_weight must have shape (V, {width}) as {side}_hidden's last dimension, not "
            f"{tuple(weight.shape)}"
        )
    vocabulary = weight.shape[0]
    parameters = {f"{side}_weight": weight}
    if bias is not None:
        _floating(f"{side}_bias", bias)
        parameters[f"{side}_bias"] = bias
        if tuple(bias.shape) != (vocabulary,):
            raise InputError(
                f"{side}_bias must have shape (V,) = ({vocabulary},), not {tuple(bias.shape)}"
            )
    for name, value in parameters.items():
        if value.device != hidden.device:
            raise InputError(f"{name} must be on {hidden.device}, not {value.device}")
        if value.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise InputError(
                f"{name} must be {hidden.dtype} as {side}_hidden, not {value.dtype}, unless "
                "autocast is on"
            )
    return vocabulary


def check_teacher(
    teacher: Tensor | SparseTeacher | None,
    student: Tensor,
    vocabulary: int,
    counted: Tensor | None,
    options: TokenOptions,
) -> None:
    """`teacher` (..., V) or listed ids (..., K) against the student's positions and device."""
    positions, device = student.shape[:-1], student.device
    needed = options.kd_weight != 0 or options.rank_weight != 0
    if teacher is None:
        if needed:
            raise InputError("the teacher is needed where kd_weight or rank_weight is not 0")
        return
    if isinstance(teacher, SparseTeacher):
        _same_positions("SparseTeacher", teacher.ids, positions, device)
        _same_positions("SparseTeacher", teacher.log_probs, positions, device)
        if not needed:
            return
        listed = teacher.ids.shape[-1]
        if listed > vocabulary:
            raise InputError(f"SparseTeacher lists {listed} ids of a vocabulary of {vocabulary}")
        if options.rank_weight and listed < options.top_k:
            raise InputError(
                f"SparseTeacher: ranking needs at least top_k = {options.top_k} ids, not {listed}"
            )
        _check_range("SparseTeacher: ids", teacher.ids, vocabulary, counted)
        return
    _, size = check_rows("teacher_logits", teacher)
    if size != vocabulary:
        raise InputError(
            f"teacher and student must share the vocabulary: {size} and {vocabulary} ids"
        )
    _same_positions("teacher_logits", teacher, positions, device)
    check_constant(teacher_logits=teacher)


def check_linear_teacher(
    hidden: Tensor | SparseTeacher | None,
    weight: Tensor | None,
    bias: Tensor | None,
    student: Tensor,
    vocabulary: int,
    counted: Tensor | None,
    options: TokenOptions,
) -> None:
    if hidden is None or isinstance(hidden, SparseTeacher):
        for name, value in (("teacher_weight", weight), ("teacher_bias", bias)):
            if value is not None:
                raise InputError(f"{name} is given without teacher_hidden to multiply it with")
        check_teacher(hidden, student, vocabulary, counted, options)
        return
    if weight is None:
        raise InputError("teacher_weight is needed with teacher_hidden")
    size = check_projection("teacher", hidden, weight, bias)
    if size != vocabulary:
        raise InputError(
            f"teacher and student must share the vocabulary: teacher_weight has {size} rows, "
            f"student_weight {vocabulary}"
        )
    _same_positions("teacher_hidden", hidden, student.shape[:-1], student.device)
    check_constant(teacher_hidden=hidden, teacher_weight=weight, teacher_bias=bias)


def check_constant(**teacher: Tensor | None) -> None:
    for name, value in teacher.items():
        if value is not None and value.requires_grad:
            raise InputError(f"{name} {CONSTANT}")


def counted_positions(
    student: Tensor, target: Tensor | None, mask: Tensor | None, options: TokenOptions
) -> Tensor | None:
    """mask and target != ignore_index as (...) bool; None where every position counts."""
    counted = None
    if target is not None:
        _integers("target", target)
        _same_shape("target", target, student)
        counted = target.long() != options.ignore_index  # which a narrow type cannot hold
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise InputError(f"mask must be a bool tensor, not {_kind(mask)}")
        _same_shape("mask", mask, student)
        counted = mask if counted is None else mask & counted
    if counted is not None and _readable(counted) and bool(counted.all()):
        return None
    return counted


def check_target(
    target: Tensor | None, counted: Tensor | None, vocabulary: int, options: TokenOptions
) -> None:
    if options.ce_weight == 0:
        return
    if target is None:
        raise InputError("target is needed where ce_weight is not 0")
    _check_range("target", target, vocabulary, counted)


def _check_range(name: str, ids: Tensor, vocabulary: int, counted: Tensor | None) -> None:
    if not _readable(ids) or ids.numel() == 0:
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


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{name} must be a floating point tensor, not {_kind(value)}")


def _integers(name: str, value: Tensor) -> None:
    if (
        not isinstance(value, Tensor)
        or value.is_floating_point()
        or value.is_complex()
        or value.dtype == torch.bool
    ):
        raise InputError(f"{name} must be an integer tensor, not {_kind(value)}")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _same_shape(name: str, value: Tensor, student: Tensor) -> None:
    positions = student.shape[:-1]
    if value.shape != positions:
        raise InputError(
            f"{name} must have the student's positions {tuple(positions)}, not {tuple(value.shape)}"
        )
    if value.device != student.device:
        raise InputError(f"{name} must be on {student.device}, not {value.device}")


def _same_positions(name: str, value: Tensor, positions: torch.Size, device: torch.device) -> None:
    if value.shape[:-1] != positions:
        raise InputError(
            f"{name} must have the student's positions {tuple(positions)} before its last "
            f"dimension, not {tuple(value.shape)}"
        )
    if value.device != device:
        raise InputError(f"{name} must be on {device}, not {value.device}")
