"""Cross-entropy, word-level distillation and TIE-KD over one student and one teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd.config.tree import CrossEntropy, TieKD, WordKD
from fastkd.functional import TokenLosses, linear_token_distillation_loss
from fastkd.methods.passes import Components, Counts, Passes


@dataclass(frozen=True)
class TokenTerms:
    """Every loss on target tokens, through the linear form: logits are never held whole.

    Losses are sums over a piece's counted tokens divided by the update's `target_tokens`.
    """

    cross_entropy: CrossEntropy | None
    distillation: Sequence[WordKD | TieKD]
    pad_id: int
    backend: str = "auto"

    def __call__(self, passes: Passes, counts: Counts) -> tuple[Tensor, Components]:
        # The gold pass of the first distillation term carries the cross-entropy with it.
        first, *others = self.distillation or (None,)
        loss, components = self._term(passes, first, self.cross_entropy, counts)
        for term in others:
            more, parts = self._term(passes, term, None, counts)
            loss, components = loss + more, components | parts
        return loss, components

    def _term(
        self,
        passes: Passes,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        counts: Counts,
    ) -> tuple[Tensor, Components]:
        """One distillation term over its iterations, or cross-entropy alone."""
        iterations = term.iterations if isinstance(term, TieKD) else 1
        gold = self._losses(passes, term, cross_entropy, 1 / iterations, iterations > 1)
        results = [gold]
        for iteration in range(1, iterations):
            passes = passes.again(self._shifted(results[-1].prediction, passes))
            last = iteration == iterations - 1
            results.append(self._losses(passes, term, None, 1 / iterations, not last))
        sums: Components = {}
        if cross_entropy:
            sums["cross_entropy"] = gold.ce
        if term:
            sums[term.name] = torch.stack([result.kd for result in results]).mean()
        if isinstance(term, TieKD) and term.rank_weight:
            sums["ranking"] = torch.stack([result.rank for result in results]).mean()
        loss = torch.stack([result.loss for result in results]).sum()
        tokens = counts.target_tokens
        return loss / tokens, {name: value / tokens for name, value in sums.items()}

    def _losses(
        self,
        passes: Passes,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        share: float,
        return_prediction: bool,
    ) -> TokenLosses:
        """The sums of one pass; `share` of the term's weight falls to it."""
        options: dict[str, Any] = {"ce_weight": 0.0, "kd_weight": 0.0}
        if cross_entropy:
            options["ce_weight"] = cross_entropy.weight
            options["label_smoothing"] = cross_entropy.label_smoothing
        if term:
            options |= passes.teaching()
            options["kd_weight"] = term.weight * share
            options["student_temperature"] = term.student_temperature
            options["teacher_temperature"] = term.teacher_temperature
        if isinstance(term, TieKD):
            options["rank_weight"] = term.weight * share * term.rank_weight
            options["top_k"] = term.top_k
        student = passes.student
        return linear_token_distillation_loss(
            student.output.rows,
            student.model.output_weight,
            target=passes.target,
            student_bias=student.model.output_bias,
            ignore_index=self.pad_id,
            reduction="sum",
            return_prediction=return_prediction,
            backend=self.backend,
            **options,
        )

    def _shifted(self, prediction: Tensor | None, passes: Passes) -> Tensor:
        """The next decoder input: start symbol, then the prediction shifted by one."""
        assert prediction is not None
        batch = passes.batch
        predicted = passes.student.output.layout.pad(prediction)  # (B, Tt)
        shifted = torch.cat([batch.decoder_input[:, :1], predicted[:, :-1]], dim=1)
        return shifted.masked_fill(batch.target == self.pad_id, self.pad_id)
