"""Align-to-Distill as a term of a student's objective (Jin et al., 2024, section 3)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.config.losses import A2D
from fastkd.modules import AlignToDistill
from fastkd.terms.passes import Components, Counts, Passes, Weighted, now, unused

# The three losses differ by orders of magnitude, so that each has a weight of its own: what won on
# multi30k's dev set (benchmarks/translation/multi30k-tuning.yaml).
DEFAULT_WEIGHTS = {"map": 80.0, "row": 30.0, "mixture": 1.0}


def mix_of(weight: Tensor, normalization: str) -> Tensor:
    """How much of each student map each teacher map is compared with: (teacher, student).

    For "mixture" the rows are the mixture's weights, softmax(W); else |W|.
    """
    return weight.softmax(1) if normalization == "mixture" else weight.abs()


class AlignmentTerm(nn.Module):
    """A2D with its learned head mixing; sums over a piece, divided by the update's counts.

    `map` is divided by sentences × teacher maps; `row` and `mixture` by query rows × teacher maps.

    student_maps, teacher_maps: number of attention maps by kind, as `AlignToDistill` takes them
    """

    def __init__(
        self,
        config: A2D,
        student_maps: Mapping[str, int],
        teacher_maps: Mapping[str, int],
        backend: str,
    ) -> None:
        super().__init__()
        self.config = config
        self.align = AlignToDistill(
            student_maps,
            teacher_maps,
            weights={"encoder": config.encoder, "decoder": config.decoder, "cross": config.cross},
            normalization=config.normalization,
            temperature=config.temperature,
            padding=config.padding,
            reduction="sum",
            backend=backend,
        )

    def forward(self, passes: Passes, counts: Counts) -> Weighted:
        given = self.config.weight
        if given is None:
            given = DEFAULT_WEIGHTS[self.config.normalization]
        weight = now(given, counts) * self.config.decay ** (counts.epoch - 1)
        if not weight:
            return unused(self)
        ours, theirs = passes.student.taps, passes.teacher.taps
        losses = []
        components: Components = {}
        for kind, alignment in self.align.kinds.items():
            student, teacher = getattr(ours, kind), getattr(theirs, kind)
            loss = alignment(student, teacher) / (self._groups(kind, counts) * teacher.maps)
            losses.append(weight * self.align.weights[kind] * loss)
            components[f"a2d.{kind}"] = loss.detach()
        return torch.stack(losses).sum(), components

    def mixes(self) -> dict[str, Tensor]:
        """By kind, `mix_of` what is learned: parts of it where it is divided over processes."""
        form = self.config.normalization
        parameters = dict(self.align.kinds.named_parameters())
        return {
            name.removesuffix(".weight"): mix_of(weight.detach(), form)
            for name, weight in parameters.items()
            if name.endswith(".weight")
        }

    def _groups(self, kind: str, counts: Counts) -> Any:
        if self.config.normalization == "map":
            return counts.sentences
        return counts.source_tokens if kind == "encoder" else counts.target_tokens
