"""Hidden-state distillation: mean squared distance of the last states."""

import torch
from torch import Tensor, nn

from fastkd.config.tree import HiddenStates
from fastkd.methods.passes import Components, Counts, Passes


class HiddenTerm(nn.Module):
    """Σ over tokens of mean((A h_student − h_teacher)²), A learned, over their number."""

    def __init__(self, config: HiddenStates, pad_id: int, student_width: int, teacher_width: int):
        super().__init__()
        self.config = config
        self.pad_id = pad_id
        sides = {"encoder": config.encoder, "decoder": config.decoder}
        self.maps = nn.ModuleDict(
            {
                side: nn.Linear(student_width, teacher_width, bias=False)
                for side, wanted in sides.items()
                if wanted
            }
        )

    def forward(self, passes: Passes, counts: Counts) -> tuple[Tensor, Components]:
        losses, components = [], {}
        for side, linear in self.maps.items():
            student, teacher = passes.student.output, passes.teacher.output
            if side == "encoder":
                ids, tokens = student.encoded.layout.rows(passes.batch.source), counts.source_tokens
                rows = student.encoded.rows, teacher.encoded.rows
            else:
                ids, tokens = passes.target, counts.target_tokens
                rows = student.rows, teacher.rows
            distance = (linear(rows[0]).float() - rows[1].float()).square().mean(-1)  # (N,)
            loss = distance.masked_fill(ids == self.pad_id, 0.0).sum() / tokens
            losses.append(self.config.weight * loss)
            components[f"hidden.{side}"] = loss.detach()
        return torch.stack(losses).sum(), components
