"""One chunk of the student's logits: from as they come to their gradient."""

from dataclasses import replace

from torch import Tensor

from fastkd.backends.tokens.torch.rows import RowLosses, StudentRows, TeacherRows
from fastkd.backends.tokens.torch.scores import Scores
from fastkd.backends.tokens.torch.scratch import Scratch
from fastkd.functional.calls import TokenOptions


def chunk_losses(
    logits: Tensor,
    teacher: TeacherRows | None,
    target: Tensor | None,
    options: TokenOptions,
    scratch: Scratch,
    differentiate: bool,
) -> RowLosses:
    """logits: (R, V) scratch, which becomes the gradient."""
    scores = Scores.of_student(options)
    capped = differentiate and scores.cap is not None
    slope = scores.take(logits, scratch.take("slope", *logits.shape) if capped else None)
    if options.vocabulary is None:
        rows = StudentRows(logits, teacher, target, options).losses(differentiate)
    else:
        rows = _compared(logits, teacher, target, options, scratch, differentiate)
    if rows.gradient is not None and not (isinstance(slope, float) and slope == 1):
        rows.gradient.mul_(slope)
    return rows


def _compared(
    logits: Tensor,
    teacher: TeacherRows | None,
    target: Tensor | None,
    options: TokenOptions,
    scratch: Scratch,
    differentiate: bool,
) -> RowLosses:
    """Cross-entropy over all ids, what has a teacher over the first ones."""
    first = logits[:, : options.vocabulary]
    first = scratch.take("compared", *first.shape).copy_(first)
    own = replace(options, kd_weight=0.0, rank_weight=0.0)
    whole = StudentRows(logits, None, target, own).losses(differentiate)
    taught = replace(options, ce_weight=0.0, return_prediction=False)
    part = StudentRows(first, teacher, None, taught).losses(differentiate)
    if whole.gradient is not None and part.gradient is not None:
        whole.gradient[:, : options.vocabulary] += part.gradient
    return RowLosses(whole.ce, part.kd, part.rank, whole.prediction, whole.gradient)
