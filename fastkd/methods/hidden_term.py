"""Hidden-state distillation: mean squared distance of the last states."""

from torch import Tensor, nn

from fastkd.config.tree import HiddenStates
from fastkd.methods.passes import Counts, Passes


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

    def forward(self, passes: Passes, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        total, components = 0.0, {}
        for side, linear in self.maps.items():
            student, teacher = passes.student, passes.teacher
            ids, tokens = passes.target, counts.target_tokens
            if side == "encoder":
                student, teacher = student.encoded, teacher.encoded
                ids, tokens = student.layout.rows(passes.batch.source), counts.source_tokens
            distance = (linear(student.rows).float() - teacher.rows.float()).square().mean(-1)
            loss = distance.masked_fill(ids == self.pad_id, 0.0).sum() / tokens
            total = total + self.config.weight * loss
            components[f"hidden.{side}"] = loss.detach()
        return total, components
