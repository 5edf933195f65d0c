"""Cross-entropy, word-level distillation and TIE-KD over one student and one teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastkd.config.losses import CrossEntropy, TieKD, WordKD
from fastkd.config.schedule import RepeatsSchedule
from fastkd.functional import TokenLosses, linear_token_distillation_loss
from fastkd.terms.passes import Components, Counts, Passes, Weighted, now, summed


@dataclass(frozen=True)
class TokenTerms:
    """Every loss on target tokens, through the linear form: logits are never held whole.

    Losses are sums over a piece's counted tokens divided by the update's `predicted` ones.
    """

    cross_entropy: CrossEntropy | None
    distillation: Sequence[WordKD | TieKD]
    backend: str = "auto"

    @classmethod
    def of(cls, losses: dict[str, Any], backend: str) -> "TokenTerms":
        """Those of the losses, by name, that are on target tokens."""
        distillation = [losses[loss.name] for loss in (WordKD, TieKD) if loss.name in losses]
        return cls(losses.get(CrossEntropy.name), distillation, backend)

    def __call__(self, passes: Passes, counts: Counts) -> Weighted:
        """Terms whose weight is 0 in this update are left out."""
        cross_entropy = self.cross_entropy
        if cross_entropy and not now(cross_entropy.weight, counts):
            cross_entropy = None
        distillation = [term for term in self.distillation if now(term.weight, counts)]
        if not distillation and not cross_entropy:
            return passes.student.states.sum() * 0, {}
        # The gold pass of the first distillation term carries the cross-entropy with it.
        first, *others = distillation or (None,)
        terms = [self._term(passes, first, cross_entropy, counts)]
        terms += [self._term(passes, term, None, counts) for term in others]
        return summed(terms)

    def _term(
        self,
        passes: Passes,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        counts: Counts,
    ) -> Weighted:
        """One distillation term over its iterations, or cross-entropy alone."""
        iterations = passes_of(term, counts) if isinstance(term, TieKD) else 1
        options = self._options(term, cross_entropy, counts, iterations)
        gold = self._losses(passes, options, iterations > 1)
        results = [gold]
        for iteration in range(1, iterations):
            prediction = results[-1].prediction
            assert prediction is not None
            passes = passes.again(prediction)
            last = iteration == iterations - 1
            results.append(self._losses(passes, options | {"ce_weight": 0.0}, not last))
        sums: Components = {}
        if cross_entropy:
            sums["cross_entropy"] = gold.ce
        if term:
            mean = torch.stack([result.kd for result in results]).mean()
            sums[term.name] = mean * _scale(term)
        if options.get("rank_weight"):
            sums["ranking"] = torch.stack([result.rank for result in results]).mean()
        loss = torch.stack([result.loss for result in results]).sum()
        tokens = counts.predicted
        return loss / tokens, {name: value / tokens for name, value in sums.items()}

    def _options(
        self,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        counts: Counts,
        iterations: int,
    ) -> dict[str, Any]:
        """Of the loss of each pass, to which an equal share of the term's weight falls."""
        options: dict[str, Any] = {"ce_weight": 0.0, "kd_weight": 0.0}
        if cross_entropy:
            options["ce_weight"] = now(cross_entropy.weight, counts)
            options["label_smoothing"] = cross_entropy.label_smoothing
        if term:
            options["kd_weight"] = now(term.weight, counts) * (1 / iterations) * _scale(term)
            options["student_temperature"] = term.student_temperature
            options["teacher_temperature"] = term.teacher_temperature
        if isinstance(term, WordKD):
            options["divergence"], options["beta"] = term.divergence, term.beta
        if isinstance(term, TieKD):
            options["rank_weight"] = options["kd_weight"] * now(term.rank_weight, counts)
            options["top_k"] = term.top_k
        return options

    def _losses(
        self, passes: Passes, options: dict[str, Any], return_prediction: bool
    ) -> TokenLosses:
        """The sums of one pass."""
        if options["kd_weight"]:
            options = options | passes.teaching()
        projection = passes.student.projection
        return linear_token_distillation_loss(
            projection.entered(passes.student.states),
            projection.weight,
            target=passes.target,
            student_bias=projection.bias,
            student_soft_cap=projection.soft_cap,
            ignore_index=passes.ignored,
            reduction="sum",
            return_prediction=return_prediction,
            backend=self.backend,
            **options,
        )


def _scale(term: WordKD | TieKD) -> float:
    """What the divergence is multiplied with beside the weight."""
    squared = isinstance(term, WordKD) and term.t_squared
    return term.student_temperature**2 if squared else 1.0


def passes_of(term: TieKD, counts: Counts) -> int:
    """How many it makes in the update of `counts`."""
    passes = term.iterations
    return passes.at(counts.update, counts.epoch) if isinstance(passes, RepeatsSchedule) else passes
