"""How a conditional masked language model is trained: masked targets, and losses at the masks."""

from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fastkd.config.losses import DiMS, Length, MaskedCrossEntropy
from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
from fastkd.errors import InputError
from fastkd.functional import linear_token_distillation_loss
from fastkd.methods.masked_passes import MaskedPasses, rows_where
from fastkd.methods.masking import Masking
from fastkd.methods.passes import ModelPass, counts_of
from fastkd.methods.teacher_steps import TeacherSteps, teacher_steps
from fastkd.nn.cmlm import CMLM
from fastkd.nn.parameters import move_average
from fastkd.terms.masked import DiMSTerm, LengthTerm, MaskedCrossEntropyTerm
from fastkd.terms.passes import Counts, Weighted, summed

_MAY_DIFFER = {"dropout", "attention_dropout", "activation_dropout"}
_VALIDATION = Masking("random", seed=0)


class MaskedScheme:
    """Masked cross-entropy, the length's cross-entropy and DiMS over shared masks.

    One pass of the student; a teacher makes as many steps as DiMS says, else one. With DiMS both
    models are in evaluation mode, unless the student's dropout is asked for.
    """

    losses: ClassVar[tuple[Any, ...]] = (MaskedCrossEntropy, Length, DiMS)
    needed: ClassVar[tuple[Any, ...]] = (MaskedCrossEntropy, DiMS)

    def __init__(self, config: Config, losses: dict[str, Any], pad_id: int) -> None:
        backend = config.training.backend
        cross_entropy = losses.get(MaskedCrossEntropy.name)
        self.model = config.model
        self.pad_id = pad_id
        self.dims: DiMS | None = losses.get(DiMS.name)
        self.masking = Masking(
            self.dims.mask if self.dims else "random",
            config.training.seed,
            cross_entropy.self_correction if cross_entropy else 0.0,
        )
        self.backend = backend
        self.terms: list[MaskedCrossEntropyTerm | DiMSTerm | LengthTerm] = []
        if cross_entropy:
            self.terms.append(MaskedCrossEntropyTerm(cross_entropy, backend))
        if self.dims:
            self.terms.append(DiMSTerm(self.dims, backend))
        if Length.name in losses:
            self.terms.append(LengthTerm(losses[Length.name]))

    @property
    def moves_teacher(self) -> bool:
        return self.dims is not None and self.dims.ema > 0

    def counts(self, corpus: Corpus, ids: np.ndarray, update: int) -> Counts:
        lengths = corpus.target_lengths[ids]
        return replace(
            counts_of(corpus, ids),
            update=update,
            masked=int(self.masking.counts(ids, lengths, update).sum()),
            replaced=int(self.masking.replaced_counts(ids, lengths, update).sum()),
        )

    def passes(
        self, student: CMLM, teacher: CMLM | None, batch: Batch, counts: Counts, taps: bool
    ) -> MaskedPasses:
        if self.dims:
            student.train(self.dims.dropout)
        masked = _masks(self.masking, batch, counts.update)
        shown = _masked_input(student, batch, masked)
        source, lengths = batch.source, batch.target_lengths
        output = student(source, batch.source_lengths, shown, lengths, taps=taps)
        taught = states = None
        if teacher is not None:
            last, states = self._teach(teacher, batch, masked, taps)
            taught = ModelPass(teacher, batch, last)
        passed = ModelPass(student, batch, output)
        return MaskedPasses(
            passed,
            taught,
            passed.target,
            self.pad_id,
            masking=self.masking,
            masked=masked,
            shown=shown,
            rows=rows_where(output.layout, masked),
            update=counts.update,
            taught_states=states,
        )

    def _teach(self, teacher: CMLM, batch: Batch, masked: Tensor, taps: bool) -> TeacherSteps:
        dims = self.dims or DiMS(steps=1)
        with torch.no_grad():
            encoded = teacher.encode(batch.source, batch.source_lengths, taps)
        target, lengths = batch.target, batch.target_lengths
        return teacher_steps(
            teacher, encoded, target, lengths, masked, dims.steps, taps, dims.reconsider
        )

    def __call__(self, passes: MaskedPasses, counts: Counts) -> Weighted:
        return summed([term(passes, counts) for term in self.terms])

    def check_teacher(self, teacher: ModelConfig) -> None:
        """DiMS's teacher must have the student's sizes, since the student starts as a copy."""
        if self.dims is None:
            return
        for name in (field.name for field in fields(teacher)):
            ours, theirs = getattr(self.model, name), getattr(teacher, name)
            if ours != theirs and name not in _MAY_DIFFER:
                raise InputError(
                    f"model.{name}: expected {theirs} as the teacher has, not {ours}: "
                    "dims starts from the teacher's weights"
                )

    @torch.no_grad()
    def begin(self, student: CMLM, teacher: CMLM | None) -> None:
        """With DiMS a new student has the teacher's weights, the length predictor's included."""
        if self.dims is None or teacher is None:
            return
        weights = dict(teacher.named_parameters())
        for name, parameter in student.named_parameters():
            parameter.copy_(weights[name])

    def before_update(self, student: CMLM, teacher: CMLM | None) -> None:
        """φ ← μφ + (1 − μ)θ: DiMS's teacher follows its student slowly."""
        if self.dims is not None and self.dims.ema and teacher is not None:
            move_average(list(teacher.parameters()), list(student.parameters()), self.dims.ema)

    @torch.no_grad()
    def validation_loss(self, model: CMLM, batch: Batch) -> tuple[Tensor, int]:
        """The sum of cross-entropies at masks that are always the same, and their number."""
        masked = _masks(_VALIDATION, batch, update=0)
        shown = _masked_input(model, batch, masked)
        output = model(batch.source, batch.source_lengths, shown, batch.target_lengths)
        rows = rows_where(output.layout, masked)
        losses = linear_token_distillation_loss(
            output.rows.index_select(0, rows),
            model.output_weight,
            target=output.layout.rows(batch.target).index_select(0, rows),
            student_bias=model.output_bias,
            ce_weight=1.0,
            kd_weight=0.0,
            backend=self.backend,
        )
        return losses.ce, len(rows)


def _masks(masking: Masking, batch: Batch, update: int) -> Tensor:
    pieces = batch.target_lengths - 1
    return masking.masked(batch.sentence_ids, pieces, batch.target.shape[1], update)


def _masked_input(model: CMLM, batch: Batch, masked: Tensor) -> Tensor:
    where = masked.to(batch.target.device, non_blocking=True)
    return batch.target.masked_fill(where, model.mask_id)
