"""The walk over hidden states: logits exist for one chunk of positions at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.chunk import chunk_losses
from fastkd.backends.tokens.torch.divided import projection_of
from fastkd.backends.tokens.torch.function import Gradients
from fastkd.backends.tokens.torch.numerics import product_dtype, without_autocast
from fastkd.backends.tokens.torch.positions import Part, Positions
from fastkd.backends.tokens.torch.products import Projecting
from fastkd.backends.tokens.torch.scratch import Scratch
from fastkd.backends.tokens.torch.teachers import flat, teacher_of
from fastkd.backends.tokens.torch.totals import Totals
from fastkd.functional.calls import Projected, TokenCall
from fastkd.functional.divided import is_divided


class LinearWalk:
    """Of one call; the student's hidden states, weight and bias come with `run`."""

    def __init__(self, call: TokenCall[Projected], product: torch.dtype | None = None) -> None:
        """product: the type of matrix products; what autocast says here, where not given."""
        hidden = call.student.hidden
        self.shape, self.options = hidden.shape[:-1], call.options
        self.vocabulary, self.given = call.student.weight.shape[0], call.teacher
        self.inside = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.product = product_dtype(hidden) if product is None else product
        self.target = None if call.target is None else call.target.reshape(-1)
        self.positions = Positions.of(call.counted, hidden, self.vocabulary)
        self.share, self.later = self.positions.share(self.options.reduction)
        if self.product != self.inside or is_divided(call.student.weight):
            self.share, self.later = 1.0, self.positions.whole(self.options.reduction)

    def run(
        self, learned: Sequence[Tensor | None], upstream: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Totals, Gradients]:
        hidden, weight, bias = learned
        assert hidden is not None and weight is not None
        with torch.no_grad(), without_autocast(hidden.device):
            projection = projection_of(weight, bias, self.product)
            return self._run(flat(hidden), projection, upstream, needed)

    def _run(
        self,
        hidden: Tensor,
        projection: Projecting,
        upstream: Tensor | None,
        needed: Sequence[bool],
    ) -> tuple[Totals, Gradients]:
        positions, options = self.positions, self.options
        teacher = teacher_of(self.given, options, self.product)
        scratch = Scratch(
            positions.chunk, self.vocabulary, self.inside, self.product, hidden.device
        )
        totals = Totals(positions, options, self.inside, hidden.device)
        gradients = projection.gradients(positions.count, self.inside, needed, self.share)
        parts: list[Part] = list(positions)
        rounds = projection.rounds(len(parts))
        rounds = teacher.rounds(rounds) if teacher else rounds
        for part in parts:
            mine = positions.take(hidden, part)  # (R, D)
            low = scratch.low(mine.shape[0])
            logits = projection.logits(mine, scratch.take("student", mine.shape[0]), low)
            theirs = teacher.rows(positions, part, scratch) if teacher else None
            target = positions.targets(self.target, part) if options.ce_weight else None
            rows = chunk_losses(logits, theirs, target, options, scratch, any(needed))
            totals.store(part, rows)
            if rows.gradient is not None:
                scale = positions.scale(upstream, part)
                gradients.add(part, mine, rows.gradient, scale, low)
        for _ in range(len(parts), rounds):  # others need what this process holds of the weights
            none, empty = slice(0), scratch.take("student", 0)
            projection.logits(hidden[none], empty, scratch.low(0))
            if teacher:
                teacher.rows(positions, none, scratch)
            if any(needed):
                gradients.add(none, hidden[none], empty, None, scratch.low(0))
        return totals, gradients.results()
