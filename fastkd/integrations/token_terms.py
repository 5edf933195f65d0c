"""Cross-entropy, word-level distillation and TIE-KD of one Transformers model by another."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd.config.tree import CrossEntropy, TieKD, WordKD
from fastkd.functional import SparseTeacher, TokenLosses, linear_token_distillation_loss
from fastkd.integrations.passes import ModelPass, States, predicted

Teaching = States | SparseTeacher | None


@dataclass(frozen=True)
class TokenTerms:
    """Sums over the predicted labels, and their unweighted, detached components by name."""

    cross_entropy: CrossEntropy | None
    distillation: list[WordKD | TieKD]
    backend: str

    def __call__(
        self, student: ModelPass, states: States, teacher: ModelPass | None, teaching: Teaching
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """states: the student's on the labels; teaching: the teacher's, or what is listed of it."""
        # The first pass of the first distillation term carries the cross-entropy with it.
        first = self.distillation[0] if self.distillation else None
        loss, components = self._term(first, self.cross_entropy, student, states, teacher, teaching)
        for term in self.distillation[1:]:
            more, parts = self._term(term, None, student, states, teacher, teaching)
            loss, components = loss + more, components | parts
        return loss, components

    def _term(
        self,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        student: ModelPass,
        states: States,
        teacher: ModelPass | None,
        teaching: Teaching,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One distillation term over its iterations, or cross-entropy alone."""
        iterations = term.iterations if isinstance(term, TieKD) else 1
        target = predicted(student.model, student.labels)
        results: list[TokenLosses] = []
        for iteration in range(iterations):
            if iteration:
                prediction = results[-1].prediction
                assert prediction is not None
                states = student.again(prediction)
                assert teacher is not None
                with torch.no_grad():
                    teaching = teacher.again(prediction)
            options = _options(term, None if iteration else cross_entropy, 1 / iterations)
            options["return_prediction"] = iteration < iterations - 1
            results.append(self._losses(states, teaching if term else None, target, options))
        components: dict[str, Tensor] = {}
        if cross_entropy:
            components["cross_entropy"] = results[0].ce
        if term:
            components[term.name] = torch.stack([result.kd for result in results]).mean()
        if isinstance(term, TieKD) and term.rank_weight:
            components["ranking"] = torch.stack([result.rank for result in results]).mean()
        return torch.stack([result.loss for result in results]).sum(), components

    def _losses(
        self, states: States, teaching: Teaching, target: Tensor, options: dict[str, Any]
    ) -> TokenLosses:
        hidden, weight, bias = states
        if isinstance(teaching, SparseTeacher):
            options["teacher_hidden"] = teaching
        elif teaching is not None:
            names = ("teacher_hidden", "teacher_weight", "teacher_bias")
            options |= dict(zip(names, teaching, strict=True))
        return linear_token_distillation_loss(
            hidden, weight, target=target, student_bias=bias, backend=self.backend, **options
        )


def _options(
    term: WordKD | TieKD | None, cross_entropy: CrossEntropy | None, share: float
) -> dict[str, Any]:
    """Weights and temperatures of one pass, to which `share` of the term's weight falls."""
    options: dict[str, Any] = {"ce_weight": 0.0, "kd_weight": 0.0}
    if cross_entropy:
        options["ce_weight"] = cross_entropy.weight
        options["label_smoothing"] = cross_entropy.label_smoothing
    if term:
        options["kd_weight"] = term.weight * share
        options["student_temperature"] = term.student_temperature
        options["teacher_temperature"] = term.teacher_temperature
    if isinstance(term, TieKD):
        options["rank_weight"] = term.weight * share * term.rank_weight
        options["top_k"] = term.top_k
    return options
