"""The token losses with their weights and options held in one place."""

from typing import Any

from torch import Tensor, nn

from fastkd.functional import (
    SparseTeacher,
    TokenLosses,
    linear_token_distillation_loss,
    token_distillation_loss,
)
from fastkd.functional.options import TokenOptions
from fastkd.functional.tokens_inputs import check_options


class TokenDistillation(nn.Module):
    """`token_distillation_loss` that holds its weights and options; it has no parameters.

    The arguments are those of `token_distillation_loss`, which says what they mean.

    Raises InputError for a value that does not fit.
    """

    def __init__(
        self,
        *,
        ce_weight: float,
        kd_weight: float,
        rank_weight: float = 0.0,
        top_k: int = 5,
        label_smoothing: float = 0.0,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "sum",
        return_prediction: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "ce_weight": ce_weight,
            "kd_weight": kd_weight,
            "rank_weight": rank_weight,
            "top_k": top_k,
            "label_smoothing": label_smoothing,
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "return_prediction": return_prediction,
        }
        check_options(TokenOptions(**self.options))
        self.backend = backend

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseTeacher | None = None,
        target: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> TokenLosses:
        """The losses of logits (..., V)."""
        return token_distillation_loss(
            student_logits,
            teacher_logits,
            target,
            mask=mask,
            backend=self.backend,
            **self.options,
        )

    def linear(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor | SparseTeacher | None = None,
        teacher_weight: Tensor | None = None,
        target: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> TokenLosses:
        """The losses of hidden states (..., D) and output projections, without whole logits."""
        return linear_token_distillation_loss(
            student_hidden,
            student_weight,
            teacher_hidden,
            teacher_weight,
            target,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            mask=mask,
            backend=self.backend,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
