"""What a conditional masked language model is trained by: masked pieces and the length."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.config.tree import Length, MaskedCrossEntropy
from fastkd.functional import linear_token_distillation_loss
from fastkd.methods.masked_passes import MaskedPasses, rows_where
from fastkd.methods.masking import Masking
from fastkd.methods.passes import Components, Counts
from fastkd.nn.cmlm import CMLM


@dataclass(frozen=True)
class MaskedCrossEntropyTerm:
    """Cross-entropy at the masked positions (Ghazvininejad et al., 2019, section 3).

    With self-correction (CMLMC, Huang et al., 2022, section 3.2) a share of the pieces left
    unmasked is replaced by the model's guesses from a fully masked target, and a second pass of
    the decoder predicts them back. The mean is over the positions of both passes.
    """

    config: MaskedCrossEntropy
    masking: Masking
    backend: str = "auto"

    def __call__(self, passes: MaskedPasses, counts: Counts) -> tuple[Tensor, Components]:
        model = passes.student.model
        states, target = passes.masked_states, passes.masked_target
        if self.config.self_correction:
            corrected, right = self._corrected(passes)
            states, target = torch.cat([states, corrected]), torch.cat([target, right])
        losses = linear_token_distillation_loss(
            states,
            model.output_weight,
            target=target,
            student_bias=model.output_bias,
            ce_weight=self.config.weight,
            kd_weight=0.0,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
            backend=self.backend,
        )
        positions = max(counts.masked + counts.replaced, 1)
        return losses.loss / positions, {self.config.name: losses.ce / positions}

    def _corrected(self, passes: MaskedPasses) -> tuple[Tensor, Tensor]:
        """States (M', width) at the replaced pieces, and the pieces that were there, (M',)."""
        batch, student = passes.batch, passes.student
        pieces = batch.target_lengths - 1
        replaced = self.masking.replaced(passes.masked, batch.sentence_ids, pieces, passes.update)
        rows = rows_where(student.output.layout, replaced)
        guess = _guess(passes, rows)
        where = replaced.to(guess.device, non_blocking=True)
        corrupted = passes.shown.masked_scatter(where, guess)
        again = student.again(corrupted, batch.target_lengths)
        return again.output.rows.index_select(0, rows), passes.target.index_select(0, rows)


@torch.no_grad()
def _guess(passes: MaskedPasses, rows: Tensor) -> Tensor:
    """The student's best pieces at these rows, from a fully masked target: (M',)."""
    batch, model = passes.batch, passes.student.model
    assert isinstance(model, CMLM)
    kept = (batch.target == model.eos_id) | (batch.target == model.pad_id)
    hidden = torch.where(kept, batch.target, model.mask_id)
    states = passes.student.again(hidden, batch.target_lengths).output.rows
    return model.best(states.index_select(0, rows))[0]


@dataclass(frozen=True)
class LengthTerm:
    """Cross-entropy of the length predictor, mean over sentences."""

    config: Length

    def __call__(self, passes: MaskedPasses, counts: Counts) -> tuple[Tensor, Components]:
        batch, model = passes.batch, passes.student.model
        assert isinstance(model, CMLM)
        logits = model.length(passes.student.output.encoded).float()
        classes = model.length.class_of(batch.target_lengths - 1, batch.source_lengths - 1)
        classes = classes.to(logits.device, non_blocking=True)
        loss = F.cross_entropy(logits, classes, reduction="sum") / counts.sentences
        return self.config.weight * loss, {self.config.name: loss.detach()}
