"""DiMS: several steps of a masked model distilled into one (Norouzi et al., 2023, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.config.tree import DiMS
from fastkd.decode.mask_predict import lowest
from fastkd.functional import linear_token_distillation_loss
from fastkd.methods.masked_passes import MaskedPasses, rows_where
from fastkd.methods.passes import Components, Counts
from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Encoded, TransformerOutput


@dataclass(frozen=True)
class DiMSTerm:
    """Over the masked positions, with z logits and h last states of teacher T and student S:

    mean KL( softmax(z_T / τ_T) ‖ softmax(z_S / τ_S) ) + hidden_weight · mean ‖h_T − h_S‖₂

    T's are those of its last step, S's those of its one pass. With hard labels the KL becomes
    the cross-entropy to argmax z_T.
    """

    config: DiMS
    backend: str = "auto"

    def __call__(self, passes: MaskedPasses, counts: Counts) -> tuple[Tensor, Components]:
        config = self.config
        student, teacher = (
            passes.masked_states(of) for of in (passes.student, passes.teacher)
        )  # (M, width) each
        positions = max(counts.masked, 1)
        divergence = self._divergence(passes, student, teacher) / positions
        components = {"dims": divergence.detach()}
        loss = config.weight * divergence
        if config.hidden_weight:
            distance = torch.linalg.vector_norm(student.float() - teacher.float(), dim=-1)
            distance = distance.sum() / positions
            components["dims.hidden"] = distance.detach()
            loss = loss + config.weight * config.hidden_weight * distance
        return loss, components

    def _divergence(self, passes: MaskedPasses, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = passes.student.model, passes.teacher.model
        if self.config.labels == "hard":
            assert isinstance(theirs, CMLM)
            return linear_token_distillation_loss(
                student,
                ours.output_weight,
                target=theirs.best(teacher)[0],
                student_bias=ours.output_bias,
                ce_weight=1.0,
                kd_weight=0.0,
                backend=self.backend,
            ).loss
        return linear_token_distillation_loss(
            student,
            ours.output_weight,
            teacher,
            theirs.output_weight,
            student_bias=ours.output_bias,
            teacher_bias=theirs.output_bias,
            ce_weight=0.0,
            kd_weight=1.0,
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
            backend=self.backend,
        ).loss


@torch.no_grad()
def teacher_steps(
    teacher: CMLM,
    encoded: Encoded,
    target: Tensor,
    target_lengths: Tensor,
    masked: Tensor,
    steps: int,
    taps: bool = False,
) -> TransformerOutput:
    """The last of `steps` mask-predict steps from a target of which u pieces are masked.

    Each step predicts all these u pieces; before step j + 1 of n the ceil((n − j) · u / n) of
    them with the lowest log-probabilities are masked again and the others filled in.

    target: (B, Tt) ids; masked: (B, Tt) bool on the CPU
    """
    where = masked.to(target.device, non_blocking=True)
    u = masked.sum(1)
    again = where
    for step in range(1, steps):
        shown = target.masked_fill(again, teacher.mask_id)
        output = teacher.decode(shown, encoded, target_lengths)
        rows = rows_where(output.layout, masked)
        ids, log_probs = teacher.best(output.rows.index_select(0, rows))
        target = target.masked_scatter(where, ids)
        scores = torch.zeros_like(target, dtype=log_probs.dtype).masked_scatter(where, log_probs)
        counts = ((steps - step) * u + steps - 1) // steps
        again = lowest(scores, where, counts.to(target.device, non_blocking=True))
    shown = target.masked_fill(again, teacher.mask_id)
    return teacher.decode(shown, encoded, target_lengths, taps)
