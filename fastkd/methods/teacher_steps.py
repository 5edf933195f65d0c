"""The steps of DiMS's teacher (Norouzi et al., 2023, section 3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.decode.mask_predict import lowest
from fastkd.methods.masked_passes import rows_where
from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Encoded, TransformerOutput


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
