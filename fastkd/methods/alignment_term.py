"""Align-to-Distill as a term of a student's objective (Jin et al., 2024, section 3)."""

import torch
from torch import Tensor, nn

from fastkd.config.tree import A2D, ModelConfig
from fastkd.methods.passes import Components, Counts, Passes
from fastkd.modules import AlignToDistill

# The three losses differ by orders of magnitude, so that each has a weight of its own: what won on
# multi30k's dev set (benchmarks/translation/multi30k-tuning.yaml).
DEFAULT_WEIGHTS = {"map": 80.0, "row": 30.0, "mixture": 1.0}


class AlignmentTerm(nn.Module):
    """A2D with its learned head mixing; sums over a piece, divided by the update's counts.

    `map` is divided by sentences × teacher maps; `row` and `mixture` by query rows × teacher maps.
    """

    def __init__(self, config: A2D, student: ModelConfig, teacher: ModelConfig, backend: str):
        super().__init__()
        self.config = config
        self.align = AlignToDistill(
            _maps(student),
            _maps(teacher),
            weights={kind: getattr(config, kind) for kind in _maps(student)},
            normalization=config.normalization,
            temperature=config.temperature,
            padding=config.padding,
            reduction="sum",
            backend=backend,
        )

    def forward(self, passes: Passes, counts: Counts, epoch: int) -> tuple[Tensor, Components]:
        weight = self.config.weight
        if weight is None:
            weight = DEFAULT_WEIGHTS[self.config.normalization]
        weight *= self.config.decay ** (epoch - 1)
        ours, theirs = passes.student.output.taps, passes.teacher.output.taps
        losses, components = [], {}
        for kind, alignment in self.align.kinds.items():
            student, teacher = getattr(ours, kind), getattr(theirs, kind)
            loss = alignment(student, teacher) / (self._groups(kind, counts) * teacher.maps)
            losses.append(weight * self.align.weights[kind] * loss)
            components[f"a2d.{kind}"] = loss.detach()
        return torch.stack(losses).sum(), components

    def _groups(self, kind: str, counts: Counts) -> int:
        if self.config.normalization == "map":
            return counts.sentences
        return counts.source_tokens if kind == "encoder" else counts.target_tokens


def _maps(model: ModelConfig) -> dict[str, int]:
    decoder = model.decoder_layers * model.heads
    return {"encoder": model.encoder_layers * model.heads, "decoder": decoder, "cross": decoder}
