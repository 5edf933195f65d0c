"""DiMS: several steps of a masked model distilled into one (Norouzi et al., 2023, section 3)."""

from dataclasses import dataclass
from typing import NamedTuple

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

    T's are those of its last step (`teacher_steps`), S's those of its one pass. With hard labels
    the KL becomes the cross-entropy to argmax z_T.
    """

    config: DiMS
    backend: str = "auto"

    def __call__(self, passes: MaskedPasses, counts: Counts) -> tuple[Tensor, Components]:
        config = self.config
        student, teacher = passes.masked_states, passes.taught_states  # (M, width) each
        assert teacher is not None
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


class TeacherSteps(NamedTuple):
    """What a teacher's steps came to."""

    output: TransformerOutput  # of the last step
    states: Tensor  # (M, width), those that each masked piece was last predicted with


@torch.no_grad()
def teacher_steps(
    teacher: CMLM,
    encoded: Encoded,
    target: Tensor,
    target_lengths: Tensor,
    masked: Tensor,
    steps: int,
    taps: bool = False,
    reconsider: bool = True,
) -> TeacherSteps:
    """Mask-predict steps from a target of which u pieces are masked.

    Each step predicts these u pieces; before step j + 1 of n the ceil((n − j) · u / n) of them
    with the lowest log-probabilities are masked again and the others filled in. Without
    `reconsider` a step predicts only what is masked then: the others keep their prediction, its
    log-probability and the state it came from.

    target: (B, Tt) ids; masked: (B, Tt) bool on the CPU
    """
    device = target.device
    where = masked.to(device, non_blocking=True)
    cells = masked.flatten().nonzero().squeeze(1).to(device, non_blocking=True)  # (M,)
    u = masked.sum(1)
    hidden = where  # what the next step does not see
    states: Tensor | None = None
    for left in reversed(range(steps)):  # steps that follow
        shown = target.masked_fill(hidden, teacher.mask_id)
        output = teacher.decode(shown, encoded, target_lengths, taps and left == 0)
        found = output.rows.index_select(0, rows_where(output.layout, masked))
        if states is not None and not reconsider:
            predicted = hidden.flatten().index_select(0, cells)
            found = torch.where(predicted[:, None], found, states)
        states = found
        if left > 0:
            ids, log_probs = teacher.best(states)
            target = target.masked_scatter(where, ids)
            scores = torch.zeros(target.shape, dtype=log_probs.dtype, device=device)
            scores = scores.masked_scatter(where, log_probs)
            counts = (left * u + steps - 1) // steps
            hidden = lowest(scores, where, counts.to(device, non_blocking=True))
    assert states is not None
    return TeacherSteps(output, states)
