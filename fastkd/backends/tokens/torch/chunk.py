"""One chunk of the student's logits: from as they come to their gradient."""

from dataclasses import replace

import torch
from torch import Tensor

from fastkd.backends.tokens.torch import alone
from fastkd.backends.tokens.torch.compared import compared
from fastkd.backends.tokens.torch.dense_teacher import DenseRows
from fastkd.backends.tokens.torch.listed_teacher import ListedRows
from fastkd.backends.tokens.torch.rows import RowLosses, StudentRows, TeacherRows
from fastkd.backends.tokens.torch.scores import Scores
from fastkd.backends.tokens.torch.scratch import Scratch
from fastkd.backends.tokens.torch.sweeps import serves, sweep
from fastkd.functional.calls import TokenOptions

# Logits of the rows that a divergence is computed of at a time: a dozen temporaries of them.
BLOCK = 2**18
DEVICE_BLOCK = 2**22


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
    found = None
    if alone.serves(logits, teacher, target, options) and target is not None:
        found = alone.cross_entropy(logits, target, options, differentiate)
    if found is not None:
        rows = found
    elif blockwise(options, teacher):
        rows = _by_blocks(logits, teacher, target, options, scratch, differentiate)
    elif options.vocabulary is None:
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


def blockwise(options: TokenOptions, teacher: TeacherRows | None) -> bool:
    """Whether a chunk is walked a few rows at a time."""
    if options.entropy_weight:
        return True
    tail = isinstance(teacher, ListedRows) and teacher.kind == "tail"
    return options.kd_weight != 0 and (options.form != "kl" or tail)


def _by_blocks(
    logits: Tensor,
    teacher: TeacherRows | None,
    target: Tensor | None,
    options: TokenOptions,
    scratch: Scratch,
    differentiate: bool,
) -> RowLosses:
    """A few rows at a time, so that what a divergence needs beside the logits stays in a cache."""
    rows, vocabulary = logits.shape
    step = max((BLOCK if logits.device.type == "cpu" else DEVICE_BLOCK) // vocabulary, 1)
    step = max(min(step, rows), 1)
    small = Scratch(step, vocabulary, scratch.inside, scratch.inside, logits.device)
    blocks = []
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        theirs = None if teacher is None else teacher.part(part)
        goal = None if target is None else target[part]
        blocks.append(_block(logits[part], theirs, goal, options, small, differentiate))
    joined = [
        None if column[0] is None else torch.cat([each for each in column if each is not None])
        for column in zip(*blocks, strict=True)
    ]
    ce, kd, rank, prediction, entropy = joined
    return RowLosses(ce, kd, rank, prediction, logits if differentiate else None, entropy)


def _block(
    logits: Tensor,
    teacher: TeacherRows | None,
    target: Tensor | None,
    options: TokenOptions,
    scratch: Scratch,
    differentiate: bool,
) -> tuple[Tensor | None, ...]:
    """The components of a few rows, whose gradient takes the place of `logits`."""
    swept = options.vocabulary is None and not options.rank_weight
    swept = swept and not options.return_prediction
    swept = swept and (target is None or options.student_temperature == 1)
    if swept and serves(logits, teacher, options):  # which reads both sides
        gradient = logits if differentiate else None
        dense = teacher if isinstance(teacher, DenseRows) else None
        ce, kd, entropy = sweep(logits, dense, target, options, scratch, gradient)
        return ce, kd, None, None, entropy
    found = compared(logits[:, : options.vocabulary], teacher, options, differentiate)
    others = replace(options, kd_weight=0.0, entropy_weight=0.0)
    ranked = teacher if options.rank_weight else None
    rows = RowLosses(None, None, None, None, None)
    if target is not None or ranked is not None or options.return_prediction:
        if ranked is None or options.vocabulary is None:
            rows = StudentRows(logits, ranked, target, others).losses(differentiate)
        else:
            rows = _compared(logits, ranked, target, others, scratch, differentiate)
    if differentiate:
        if rows.gradient is None:
            logits.zero_()
        elif rows.gradient.data_ptr() != logits.data_ptr():
            logits.copy_(rows.gradient)
        if found.gradient is not None:
            logits[:, : options.vocabulary].add_(found.gradient)
    return rows.ce, found.kd, rows.rank, rows.prediction, found.entropy
