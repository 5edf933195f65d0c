"""What a conditional masked language model is trained by: masked pieces, the length, DiMS."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.config.losses import DiMS, Length, MaskedCrossEntropy
from fastkd.functional import linear_token_distillation_loss
from fastkd.terms.passes import Counts, Projection, Weighted, now


class Masked(Protocol):
    """Both models on one partly masked target, of which M pieces are masked."""

    @property
    def projection(self) -> Projection:
        """The student's."""

    @property
    def masked_states(self) -> Tensor:
        """The student's last states at the masks, (M, width)."""

    @property
    def masked_target(self) -> Tensor:
        """The pieces behind the masks, (M,)."""

    @property
    def taught_states(self) -> Tensor | None:
        """The teacher's states there, (M, width), each from the step that predicted it last."""

    @property
    def taught_projection(self) -> Projection:
        """The teacher's."""

    def taught_best(self) -> Tensor:
        """The teacher's best pieces there, (M,)."""

    def corrected(self) -> tuple[Tensor, Tensor]:
        """States (M', width) at pieces replaced by the student's guesses, and what was there."""

    def lengths(self) -> tuple[Tensor, Tensor]:
        """The length predictor's logits, (B, classes), and the right classes, (B,)."""


@dataclass(frozen=True)
class MaskedCrossEntropyTerm:
    """Cross-entropy at the masked positions (Ghazvininejad et al., 2019, section 3).

    With self-correction (CMLMC, Huang et al., 2022, section 3.2) a share of the pieces left
    unmasked is replaced by the model's guesses from a fully masked target, and a second pass of
    the decoder predicts them back. The mean is over the positions of both passes.
    """

    config: MaskedCrossEntropy
    backend: str = "auto"

    def __call__(self, passes: Masked, counts: Counts) -> Weighted:
        states, target = passes.masked_states, passes.masked_target
        if self.config.self_correction:
            corrected, right = passes.corrected()
            states, target = torch.cat([states, corrected]), torch.cat([target, right])
        losses = linear_token_distillation_loss(
            states,
            passes.projection.weight,
            target=target,
            student_bias=passes.projection.bias,
            ce_weight=now(self.config.weight, counts),
            kd_weight=0.0,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
            backend=self.backend,
        )
        positions = max(counts.masked + counts.replaced, 1)
        return losses.loss / positions, {self.config.name: losses.ce / positions}


@dataclass(frozen=True)
class LengthTerm:
    """Cross-entropy of the length predictor, mean over sentences."""

    config: Length

    def __call__(self, passes: Masked, counts: Counts) -> Weighted:
        logits, classes = passes.lengths()
        loss = F.cross_entropy(logits, classes, reduction="sum") / counts.sentences
        return now(self.config.weight, counts) * loss, {self.config.name: loss.detach()}


@dataclass(frozen=True)
class DiMSTerm:
    """Several mask-predict steps distilled into one (Norouzi et al., 2023, section 3).

    Over the masked positions, with z logits and h last states of teacher T and student S:

    mean KL( softmax(z_T / τ_T) ‖ softmax(z_S / τ_S) ) + hidden_weight · mean ‖h_T − h_S‖₂

    T's are those of its last step, S's those of its one pass. With hard labels the KL becomes the
    cross-entropy to argmax z_T.
    """

    config: DiMS
    backend: str = "auto"

    def __call__(self, passes: Masked, counts: Counts) -> Weighted:
        config, weight = self.config, now(self.config.weight, counts)
        student, teacher = passes.masked_states, passes.taught_states  # (M, width) each
        assert teacher is not None
        positions = max(counts.masked, 1)
        divergence = self._divergence(passes, student, teacher) / positions
        components = {"dims": divergence.detach()}
        loss = weight * divergence
        if beside := now(config.hidden_weight, counts):
            distance = torch.linalg.vector_norm(student.float() - teacher.float(), dim=-1)
            distance = distance.sum() / positions
            components["dims.hidden"] = distance.detach()
            loss = loss + weight * beside * distance
        return loss, components

    def _divergence(self, passes: Masked, student: Tensor, teacher: Tensor) -> Tensor:
        ours = passes.projection
        if self.config.labels == "hard":
            return linear_token_distillation_loss(
                student,
                ours.weight,
                target=passes.taught_best(),
                student_bias=ours.bias,
                ce_weight=1.0,
                kd_weight=0.0,
                backend=self.backend,
            ).loss
        theirs = passes.taught_projection
        return linear_token_distillation_loss(
            student,
            ours.weight,
            teacher,
            theirs.weight,
            student_bias=ours.bias,
            teacher_bias=theirs.bias,
            ce_weight=0.0,
            kd_weight=1.0,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
            backend=self.backend,
        ).loss
