"""Launches the row kernel on rows of logits."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastkd_kernels.common import INTERPRETED, stride_unit
from fastkd_kernels.launching import Step, step
from fastkd_kernels.tokens.row.kernel import (
    DENSE,
    LISTED,
    NO_TEACHER,
    POINTERS,
    VARYING,
    token_losses_fwd,
)
from fastkd_kernels.tokens.settings import (
    KERNEL_FORMS,
    RESTS,
    SCORES,
    Scoring,
    TokenSettings,
    fuses,
    listed_block,
    row_shape,
)

# Of a list that is written out as logits of every id.
WRITTEN_BYTES = 256 << 20
# Rows that one stride reaches: all lie in one outer step, whatever their number.
_ONE_STRIDE = (1 << 31) - 1


class Rows(NamedTuple):
    """How logits (..., V) lie, as (outer, inner, V)."""

    outer: int  # strides
    inner: int
    step: int
    length: int  # of inner
    dtype: torch.dtype

    @staticmethod
    def of(logits: Tensor) -> "tuple[Tensor, Rows]":
        """`logits`, without a copy where possible, and how they lie."""
        if logits.dim() > 3 and not logits.is_contiguous():
            logits = logits.reshape(-1, *logits.shape[-2:])
        dtype = logits.dtype
        if logits.is_contiguous():
            return logits, Rows(0, logits.shape[-1], 1, _ONE_STRIDE, dtype)
        *outer, step = logits.stride()
        if len(outer) < 2:
            return logits, Rows(0, outer[0] if outer else 0, step, _ONE_STRIDE, dtype)
        return logits, Rows(outer[0], outer[1], step, logits.shape[1], dtype)

    def beside(self, other: "Rows") -> "Rows":
        """The same rows, counted as `other` counts its own."""
        if self.length == other.length or self.length != _ONE_STRIDE:
            return self
        return self._replace(outer=other.length * self.inner, length=other.length)


class Teacher(NamedTuple):
    """Dense logits (..., V), or (rows, K) ids with log-probabilities, or neither."""

    logits: Tensor | None = None
    ids: Tensor | None = None
    log_probs: Tensor | None = None

    def rows(self, first: int, last: int) -> "Teacher":
        """The part of a listed teacher that belongs to rows first..last−1."""
        if self.ids is None or self.log_probs is None:
            return self
        return self._replace(ids=self.ids[first:last], log_probs=self.log_probs[first:last])


class RowLosses(NamedTuple):
    """Per-row float32 loss (rows,), its ce, kd, rank and entropy (4, rows); the prediction."""

    loss: Tensor
    parts: Tensor
    prediction: Tensor | None  # (rows,) int64

    @staticmethod
    def empty(rows: int, predict: bool, like: Tensor) -> "RowLosses":
        """On the device of `like`."""
        return RowLosses(
            like.new_empty(rows, dtype=torch.float32),
            like.new_empty((4, rows), dtype=torch.float32),
            like.new_empty(rows, dtype=torch.int64) if predict else None,
        )

    def rows(self, first: int, last: int) -> "RowLosses":
        prediction = None if self.prediction is None else self.prediction[first:last]
        return RowLosses(self.loss[first:last], self.parts[:, first:last], prediction)


class _Request(NamedTuple):
    """What a launch is planned by: the same for any number of rows."""

    vocabulary: int
    student: Rows
    teacher: Rows | None
    listed: int | None
    dtypes: tuple[torch.dtype | None, ...]  # of ids, log-probabilities, target and gradient
    masked: bool
    scale_step: int | None  # between the gradient's factors, where there are any
    predict: bool
    settings: TokenSettings
    device: torch.device


def launch_rows(
    student: Tensor,  # (..., V)
    teacher: Teacher,
    target: Tensor | None,  # (rows,)
    counted: Tensor | None,  # (rows,)
    settings: TokenSettings,
    losses: RowLosses,
    gradient: Tensor | None,  # (rows, V), contiguous; may be `student` itself
    gain: float = 1.0,
    scale: Tensor | None = None,  # (rows,) or (1,) float32
) -> None:
    """Fills `losses`, and `gradient` = dloss/dstudent · gain · scale of each row."""
    rows = losses.loss.shape[0]
    if rows == 0:
        return
    taught, ids, log_probs = teacher if settings.teaches else (None, None, None)
    if ids is not None and settings.writes_list:
        most = max(WRITTEN_BYTES // (4 * settings.compared(student.shape[-1])), 1)
        if rows > most:
            flat = student.reshape(-1, student.shape[-1])
            for first in range(0, rows, most):
                part = slice(first, first + most)
                launch_rows(
                    flat[part], teacher.rows(first, first + most),
                    None if target is None else target[part],
                    None if counted is None else counted[part],
                    settings, losses.rows(first, first + most),
                    None if gradient is None else gradient[part],
                    gain, scale if scale is None or scale.shape[0] == 1 else scale[part],
                )  # fmt: skip
            return
    student, student_rows = Rows.of(student)
    teacher_rows, listed, kept = None, None, None
    if taught is not None:
        taught, teacher_rows = Rows.of(taught)
        teacher_rows, student_rows = (
            teacher_rows.beside(student_rows), student_rows.beside(teacher_rows)
        )  # fmt: skip
    if ids is not None:
        listed = ids.shape[-1]
        if settings.writes_list:
            compared = settings.compared(student.shape[-1])
            taught = torch.empty((rows, compared), dtype=torch.float32, device=student.device)
        if gradient is not None:
            kept = torch.empty((rows, listed), dtype=torch.float32, device=student.device)
    if not settings.ce_weight:
        target = None
    request = _Request(
        vocabulary=student.shape[-1],
        student=student_rows,
        teacher=teacher_rows,
        listed=listed,
        dtypes=(
            None if ids is None else ids.dtype,
            None if log_probs is None else log_probs.dtype,
            None if target is None else target.dtype,
            None if gradient is None else gradient.dtype,
        ),
        masked=counted is not None,
        scale_step=None if scale is None else int(scale.shape[0] > 1),
        predict=losses.prediction is not None,
        settings=settings,
        device=student.device,
    )
    _planned(request).launch(
        (
            student,
            taught,
            ids,
            log_probs,
            kept,
            target,
            counted,
            scale,
            losses.loss,
            losses.parts,
            losses.prediction,
            gradient,
        ),
        programs=rows,
        varying=(gain, losses.parts.stride(0)),
    )


@lru_cache(maxsize=1024)
def _planned(request: _Request) -> Step:
    settings, student = request.settings, request.student
    kind, teacher = NO_TEACHER, student
    if request.teacher is not None:
        kind, teacher = DENSE, request.teacher
    elif request.listed is not None:
        kind = LISTED
        if settings.writes_list:
            teacher = student._replace(step=1)
    unit = stride_unit(
        request.vocabulary, student.outer, student.inner, teacher.outer, teacher.inner
    )
    has_rank = settings.rank_weight != 0
    top_k = settings.top_k if has_rank else 1
    listed = request.listed or 0
    form, beta = settings.kernel_form
    compared = settings.compared(request.vocabulary)
    by_student = Scoring.of(settings.student_logit_scale, settings.student_soft_cap)
    by_teacher = Scoring.of(settings.teacher_logit_scale, settings.teacher_soft_cap)
    if kind is not DENSE:
        by_teacher = Scoring.of(1.0, None)
    scores = by_student.kind, by_teacher.kind
    cut = compared < request.vocabulary
    compared_unit = stride_unit(compared) if cut else 1
    light = fuses(form, *scores) and not cut and not (has_rank and kind is LISTED)
    rest = settings.rest if settings.kd_weight or settings.rest != "tail" else "drop"
    block_v, warps, registers = row_shape(
        request.vocabulary, has_rank, max(student.step, teacher.step), unit, light
    )
    tempered = settings.teaches or settings.entropy_weight != 0
    student_temperature = settings.student_temperature if tempered else 1.0
    return step(
        token_losses_fwd,
        programs=0,
        tensors={name: name for name in POINTERS},
        varying=VARYING,
        scalars={
            "inner": student.length,
            "student_outer": student.outer // unit,
            "student_inner": student.inner // unit,
            "student_step": student.step,
            "teacher_outer": teacher.outer // unit,
            "teacher_inner": teacher.inner // unit,
            "teacher_step": teacher.step,
            "listed": listed,
            "scale_step": request.scale_step or 0,
            "vocabulary_units": request.vocabulary // unit,
            "compared_units": compared // compared_unit if cut else 0,
            "ce_weight": float(settings.ce_weight),
            "kd_weight": float(settings.kd_weight),
            "rank_weight": float(settings.rank_weight),
            "entropy_weight": float(settings.entropy_weight),
            "smoothing": float(settings.label_smoothing),
            "student_scale": 1 / student_temperature,
            "teacher_scale": 1 / settings.teacher_temperature,
            "beta": float(beta),
            "student_factor": float(by_student.factor),
            "student_cap": float(by_student.cap),
            "teacher_factor": float(by_teacher.factor),
            "teacher_cap": float(by_teacher.cap),
        },
        constants={
            "UNIT": unit,
            "COMPARED_UNIT": compared_unit,
            "HAS_CE": settings.ce_weight != 0,
            "HAS_KD": settings.kd_weight != 0,
            "HAS_RANK": has_rank,
            "HAS_ENTROPY": settings.entropy_weight != 0,
            "FORM": KERNEL_FORMS.index(form),
            "NVIDIA": not INTERPRETED and torch.version.hip is None,
            "SMOOTH": settings.ce_weight != 0 and settings.label_smoothing > 0,
            "TEMPERED": student_temperature != 1,
            "TEACHER": kind.value,
            "REST": RESTS.index(rest) if kind is LISTED else 0,
            "STUDENT_SCORES": SCORES.index(by_student.kind),
            "TEACHER_SCORES": SCORES.index(by_teacher.kind),
            "CUT": cut,
            "TOP_K": top_k,
            "TOP_K_PAD": max(triton.next_power_of_2(top_k), 2),
            "BLOCK_V": block_v,
            "BLOCK_K": listed_block(listed),
            "VECTOR": 16 // student.dtype.itemsize,
        },
        options={"num_warps": warps, "enable_fp_fusion": fuses(form, *scores)}
        | ({} if torch.version.hip else {"maxnreg": registers}),
    )
