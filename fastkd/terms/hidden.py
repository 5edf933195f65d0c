"""Hidden-state distillation: mean squared distance of the last states."""

from collections.abc import Mapping

import torch
from torch import nn

from fastkd.config.losses import HiddenStates
from fastkd.terms.passes import Components, Counts, Passes, Weighted, now, unused


class HiddenTerm(nn.Module):
    """Σ over tokens of mean((A h_student − h_teacher)²), A learned, over their number.

    widths: of the student's and the teacher's states, by the sides to compare: "encoder", "decoder"
    """

    def __init__(self, config: HiddenStates, widths: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.config = config
        self.maps = nn.ModuleDict(
            {side: nn.Linear(*sizes, bias=False) for side, sizes in widths.items()}
        )

    def forward(self, passes: Passes, counts: Counts) -> Weighted:
        weight = now(self.config.weight, counts)
        if not weight:
            return unused(self)
        losses = []
        components: Components = {}
        student, teacher = passes.student, passes.teacher
        for side, linear in self.maps.items():
            if side == "encoder":
                absent, tokens = ~student.encoder_mask, counts.source_tokens
                ours, theirs = student.encoder_states, teacher.encoder_states
            else:
                absent, tokens = passes.target == passes.ignored, counts.predicted
                ours, theirs = student.states, teacher.states
            if not torch.is_autocast_enabled(ours.device.type):
                ours = ours.to(next(linear.parameters()).dtype)  # a bfloat16 model
            distance = (linear(ours).float() - theirs.float()).square().mean(-1)  # (*,)
            loss = distance.masked_fill(absent, 0.0).sum() / tokens
            losses.append(weight * loss)
            components[f"hidden.{side}"] = loss.detach()
        return torch.stack(losses).sum(), components
