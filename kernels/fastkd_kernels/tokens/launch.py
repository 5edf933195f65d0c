"""Launches the row kernel on rows of logits."""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from fastkd_kernels.common import stride_unit
from fastkd_kernels.tokens.row.kernel import DENSE, LISTED, NO_TEACHER, token_losses_fwd
from fastkd_kernels.tokens.settings import (
    FORMS,
    RESTS,
    TokenSettings,
    listed_block,
    row_shape,
)


@dataclass(frozen=True)
class Rows:
    """Logits (..., V) as (outer, inner, V) with any strides, without a copy where possible."""

    tensor: Tensor
    strides: tuple[int, int, int]
    inner: int

    @staticmethod
    def of(logits: Tensor) -> "Rows":
        while logits.dim() < 3:
            logits = logits.unsqueeze(0)
        if logits.dim() > 3:
            logits = logits.reshape(-1, *logits.shape[-2:])
        outer, inner, step = logits.stride()
        return Rows(logits, (outer, inner, step), logits.shape[1])


@dataclass(frozen=True)
class Teacher:
    """Dense logits (..., V), or (rows, K) ids with log-probabilities, or neither."""

    logits: Tensor | None = None
    ids: Tensor | None = None
    log_probs: Tensor | None = None

    def rows(self, first: int, last: int) -> "Teacher":
        """The part of a listed teacher that belongs to rows first..last−1."""
        if self.ids is None or self.log_probs is None:
            return self
        return replace(self, ids=self.ids[first:last], log_probs=self.log_probs[first:last])


@dataclass(frozen=True)
class RowLosses:
    """Per-row float32 loss, ce, kd and rank, each (rows,), and the prediction (rows,) or (0,)."""

    columns: tuple[Tensor, Tensor, Tensor, Tensor]
    prediction: Tensor

    @staticmethod
    def empty(rows: int, predict: bool, device: torch.device) -> "RowLosses":
        loss, ce, kd, rank = torch.empty((4, rows), dtype=torch.float32, device=device).unbind(0)
        prediction = torch.empty(rows if predict else 0, dtype=torch.int64, device=device)
        return RowLosses((loss, ce, kd, rank), prediction)

    def rows(self, first: int, last: int) -> "RowLosses":
        loss, ce, kd, rank = (column[first:last] for column in self.columns)
        return RowLosses((loss, ce, kd, rank), self.prediction[first:last])


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
    rows = losses.columns[0].numel()
    if rows == 0:
        return
    vocabulary = student.shape[-1]
    student_rows = Rows.of(student)
    distill = settings.kd_weight != 0 or settings.rank_weight != 0
    kind, teacher_rows = NO_TEACHER, student_rows
    if distill and teacher.logits is not None:
        kind, teacher_rows = DENSE, Rows.of(teacher.logits)
    elif distill:
        kind = LISTED
    unit = stride_unit(vocabulary, *student_rows.strides[:2], *teacher_rows.strides[:2])
    listed = teacher.ids.shape[-1] if kind is LISTED and teacher.ids is not None else 0
    kept = None
    if kind is LISTED and gradient is not None:
        kept = torch.empty((rows, listed), dtype=torch.float32, device=student.device)
    has_rank = settings.rank_weight != 0
    top_k = settings.top_k if has_rank else 1
    step = max(student_rows.strides[2], teacher_rows.strides[2])
    block_v, warps, registers = row_shape(vocabulary, has_rank, step, unit)
    student_temperature = settings.student_temperature if distill else 1.0
    token_losses_fwd[(rows,)](
        student_rows.tensor,
        student_rows.strides[0] // unit,
        student_rows.strides[1] // unit,
        student_rows.strides[2],
        teacher_rows.tensor if kind is DENSE else None,
        teacher_rows.strides[0] // unit,
        teacher_rows.strides[1] // unit,
        teacher_rows.strides[2],
        teacher.ids if kind is LISTED else None,
        teacher.log_probs if kind is LISTED else None,
        kept,
        listed,
        target if settings.ce_weight else None,
        counted,
        scale,
        0 if scale is None or scale.numel() == 1 else 1,
        *losses.columns,
        losses.prediction if losses.prediction.numel() else None,
        gradient,
        student_rows.inner,
        vocabulary // unit,
        gain,
        settings.ce_weight,
        settings.kd_weight,
        settings.rank_weight,
        settings.label_smoothing,
        1 / student_temperature,
        1 / settings.teacher_temperature,
        settings.beta,
        UNIT=unit,
        HAS_CE=settings.ce_weight != 0,
        HAS_KD=settings.kd_weight != 0,
        HAS_RANK=has_rank,
        FORM=FORMS.index(settings.form) if settings.kd_weight else 0,
        SMOOTH=settings.ce_weight != 0 and settings.label_smoothing > 0,
        TEMPERED=student_temperature != 1,
        TEACHER=kind.value,
        REST=RESTS.index(settings.rest) if kind is LISTED else 0,
        PREDICT=losses.prediction.numel() > 0,
        GRADIENT=gradient is not None,
        TOP_K=top_k,
        TOP_K_PAD=max(triton.next_power_of_2(top_k), 2),
        BLOCK_V=block_v,
        BLOCK_K=listed_block(listed),
        VECTOR=16 // student.element_size(),
        num_warps=warps,
        **({} if torch.version.hip else {"maxnreg": registers}),
    )
