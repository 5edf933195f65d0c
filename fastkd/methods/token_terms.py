"""Cross-entropy, word-level distillation and TIE-KD over one student and one teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.config.tree import CrossEntropy, TieKD, WordKD
from fastkd.functional import TokenLosses, linear_token_distillation_loss
from fastkd.methods.passes import Counts, Passes

Components = dict[str, Tensor]


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
        total, components = None, {}
        smoothing = self.cross_entropy
        # The gold pass of the first distillation term carries the cross-entropy with it.
        for term in self.distillation or (None,):
            loss, parts = self._term(passes, term, smoothing, counts)
            smoothing = None
            total = loss if total is None else total + loss
            components |= parts
        return total, components

    def _term(
        self,
        passes: Passes,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        counts: Counts,
    ) -> tuple[Tensor, Components]:
        iterations = term.iterations if isinstance(term, TieKD) else 1
        student = passes.student.rows
        teacher = passes.teacher.rows if term else None
        results: list[TokenLosses] = []
        for iteration in range(iterations):
            if iteration > 0:
                student, teacher = passes.again(self._shifted(results[-1].prediction, passes))
            results.append(
                self._losses(
                    passes,
                    student,
                    teacher,
                    term,
                    cross_entropy if iteration == 0 else None,
                    iterations,
                    return_prediction=iteration + 1 < iterations,
                )
            )
        components = {}
        if cross_entropy:
            components["cross_entropy"] = results[0].ce
        if term:
            components[term.name] = sum(result.kd for result in results) / iterations
        if isinstance(term, TieKD) and term.rank_weight:
            components["ranking"] = sum(result.rank for result in results) / iterations
        tokens = counts.target_tokens
        loss = torch.stack([result.loss for result in results]).sum() / tokens
        return loss, {name: value / tokens for name, value in components.items()}

    def _losses(
        self,
        passes: Passes,
        student: Tensor,
        teacher: Tensor | None,
        term: WordKD | TieKD | None,
        cross_entropy: CrossEntropy | None,
        iterations: int,
        return_prediction: bool,
    ) -> TokenLosses:
        options = {}
        if term:
            kd_weight = term.weight / iterations
            options = {
                "teacher_hidden": teacher,
                "teacher_weight": passes.teacher_model.output_weight,
                "teacher_bias": passes.teacher_model.output_bias,
                "student_temperature": term.student_temperature,
                "teacher_temperature": term.teacher_temperature,
            }
            if isinstance(term, TieKD):
                options |= {"rank_weight": kd_weight * term.rank_weight, "top_k": term.top_k}
        return linear_token_distillation_loss(
            student,
            passes.student_model.output_weight,
            target=passes.target,
            student_bias=passes.student_model.output_bias,
            ce_weight=cross_entropy.weight if cross_entropy else 0.0,
            label_smoothing=cross_entropy.label_smoothing if cross_entropy else 0.0,
            kd_weight=kd_weight if term else 0.0,
            ignore_index=self.pad_id,
            reduction="sum",
            return_prediction=return_prediction,
            backend=self.backend,
            **options,
        )

    def _shifted(self, prediction: Tensor, passes: Passes) -> Tensor:
        """The next decoder input: start symbol, then the prediction shifted by one."""
        batch = passes.batch
        predicted = passes.student.layout.pad(prediction)  # (B, Tt)
        shifted = torch.cat([batch.decoder_input[:, :1], predicted[:, :-1]], dim=1)
        return shifted.masked_fill(batch.target == self.pad_id, self.pad_id)
