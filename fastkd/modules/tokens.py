"""The token losses with their weights and options held in one place."""

from typing import Unpack

from torch import Tensor, nn

from fastkd.functional import (
    SparseTeacher,
    TokenLosses,
    linear_token_distillation_loss,
    token_checks,
    token_distillation_loss,
)
from fastkd.functional.calls import TokenKeywords, TokenOptions


class TokenDistillation(nn.Module):
    """`token_distillation_loss` that holds its weights and options; it has no parameters.

    The arguments are those of `token_distillation_loss`, which says what they mean.

    t_squared: kd_weight is multiplied with student_temperature², which keeps the size of the
        gradient (Hinton et al., 2015, section 2)

    Raises InputError for a value that does not fit.
    """

    def __init__(
        self, *, backend: str = "auto", t_squared: bool = False, **options: Unpack[TokenKeywords]
    ) -> None:
        super().__init__()
        given = token_checks.options_of(**options)
        if t_squared:
            options["kd_weight"] = given.kd_weight * given.student_temperature**2
        self.options = options
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
        given = vars(TokenOptions(**self.options))
        return ", ".join(f"{name}={value!r}" for name, value in given.items())
