"""The walk over logits that the caller holds."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from fastkd_kernels.once import early_dtype
from torch import Tensor

from fastkd.backends.tokens.torch.chunk import chunk_losses
from fastkd.backends.tokens.torch.function import Gradients
from fastkd.backends.tokens.torch.numerics import without_autocast
from fastkd.backends.tokens.torch.positions import Positions
from fastkd.backends.tokens.torch.scratch import Scratch
from fastkd.backends.tokens.torch.teachers import flat, teacher_of
from fastkd.backends.tokens.torch.totals import Totals
from fastkd.functional.calls import TokenCall


class DenseWalk:
    """Of one call; the student's logits come with `run`."""

    def __init__(self, call: TokenCall[Tensor]) -> None:
        logits = call.student
        self.shape, self.options = logits.shape[:-1], call.options
        self.vocabulary = logits.shape[-1]
        self.inside = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self.teacher = teacher_of(call.teacher, call.options, self.inside)
        self.target = None if call.target is None else call.target.reshape(-1)
        self.positions = Positions.of(call.counted, logits, self.vocabulary)
        share, self.later = self.positions.share(self.options.reduction)
        names = ("ce_weight", "kd_weight", "rank_weight", "entropy_weight")
        weights = {name: share * getattr(self.options, name) for name in names}
        self.slopes = replace(self.options, **weights)  # whose gradient is the mean's

    def run(
        self, learned: Sequence[Tensor | None], upstream: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Totals, Gradients]:
        (logits,) = learned
        assert logits is not None
        with torch.no_grad(), without_autocast(logits.device):
            return self._run(logits, upstream, needed[0])

    def _run(
        self, given: Tensor, upstream: Tensor | None, needed: bool
    ) -> tuple[Totals, Gradients]:
        positions, options, inside = self.positions, self.options, self.inside
        student = flat(given)  # (N, V)
        scratch = Scratch(positions.chunk, self.vocabulary, inside, inside, given.device)
        totals = Totals(positions, options, inside, given.device)
        early = early_dtype(student.dtype)
        gradient = torch.zeros_like(student, dtype=early) if needed else None
        for part in positions:
            mine = positions.take(student, part)
            logits = scratch.take("student", mine.shape[0]).copy_(mine)
            theirs = self.teacher.rows(positions, part, scratch) if self.teacher else None
            target = positions.targets(self.target, part) if options.ce_weight else None
            rows = chunk_losses(logits, theirs, target, self.slopes, scratch, needed)
            totals.store(part, rows)
            if gradient is not None and rows.gradient is not None:
                scale = positions.scale(upstream, part)
                if scale is not None:
                    rows.gradient.mul_(scale.unsqueeze(-1))
                gradient[part] = rows.gradient.to(gradient.dtype)
        return totals, [gradient]
