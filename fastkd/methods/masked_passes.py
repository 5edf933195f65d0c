"""What the losses of one batch share where the target is partly masked."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.data.batches import Batch
from fastkd.methods.masking import Masking
from fastkd.methods.passes import ModelPass
from fastkd.nn.cmlm import CMLM
from fastkd.nn.layout import Layout
from fastkd.terms.passes import Passes, Projection


@dataclass(frozen=True, eq=False)
class MaskedPasses(Passes):
    """Both models on one partly masked target; the teacher's is its last step.

    A `fastkd.terms.masked.Masked`.

    student: a pass of a `CMLM`, as the teacher's is
    masked: (B, Tt) bool, where the student saw a mask; on the CPU, as `update`'s choices are
    shown: (B, Tt) ids, the student's decoder input
    rows: which rows of the decoder's states lie at masks, (M,), sentence by sentence
    taught_states: the teacher's states there, (M, width), each from the step that predicted it last
    """

    student: ModelPass
    masking: Masking
    masked: Tensor
    shown: Tensor
    rows: Tensor
    update: int
    taught_states: Tensor | None = None

    @property
    def batch(self) -> Batch:
        return self.student.batch

    @property
    def projection(self) -> Projection:
        return self.student.projection

    @property
    def taught_projection(self) -> Projection:
        return self.teacher.projection

    @property
    def masked_states(self) -> Tensor:
        return self.student.states.index_select(0, self.rows)

    @property
    def masked_target(self) -> Tensor:
        return self.target.index_select(0, self.rows)

    def taught_best(self) -> Tensor:
        assert isinstance(self.teacher, ModelPass) and self.taught_states is not None
        return _cmlm(self.teacher).best(self.taught_states)[0]

    def corrected(self) -> tuple[Tensor, Tensor]:
        batch, student = self.batch, self.student
        pieces = batch.target_lengths - 1
        replaced = self.masking.replaced(self.masked, batch.sentence_ids, pieces, self.update)
        rows = rows_where(student.output.layout, replaced)
        guess = self._guess(rows)
        where = replaced.to(guess.device, non_blocking=True)
        again = student.on(self.shown.masked_scatter(where, guess))
        return again.states.index_select(0, rows), self.target.index_select(0, rows)

    @torch.no_grad()
    def _guess(self, rows: Tensor) -> Tensor:
        """The student's best pieces at these rows, from a fully masked target: (M',)."""
        target, model = self.batch.target, _cmlm(self.student)
        kept = (target == model.eos_id) | (target == model.pad_id)
        states = self.student.on(torch.where(kept, target, model.mask_id)).states
        return model.best(states.index_select(0, rows))[0]

    def lengths(self) -> tuple[Tensor, Tensor]:
        batch, model = self.batch, _cmlm(self.student)
        logits = model.length(self.student.output.encoded).float()
        classes = model.length.class_of(batch.target_lengths - 1, batch.source_lengths - 1)
        return logits, classes.to(logits.device, non_blocking=True)


def _cmlm(passed: ModelPass) -> CMLM:
    assert isinstance(passed.model, CMLM)
    return passed.model


def rows_where(layout: Layout, mask: Tensor) -> Tensor:
    """Which rows of `layout` are the tokens where `mask` (B, T) bool, on the CPU, is true."""
    if layout.packed:
        mask = mask[torch.arange(layout.time) < layout.lengths[:, None]]
    return mask.flatten().nonzero().squeeze(1).to(layout.device, non_blocking=True)
