"""What becomes of logits before everything else: a scale, then a soft cap."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.numerics import BANNED
from fastkd.functional.calls import TokenOptions


@dataclass(frozen=True)
class Scores:
    """c·tanh(scale·z/c) of one side's logits z; without a cap scale·z."""

    scale: float
    cap: float | None

    @staticmethod
    def of_student(options: TokenOptions) -> "Scores":
        return Scores(options.student_logit_scale, options.student_soft_cap)

    @staticmethod
    def of_teacher(options: TokenOptions) -> "Scores":
        return Scores(options.teacher_logit_scale, options.teacher_soft_cap)

    def take(self, logits: Tensor, slope: Tensor | None = None) -> Tensor | float:
        """Puts the scores in place of `logits` (R, V); returns their derivative, where it is not
        a number in `slope`, which is scratch."""
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.cap is None:
            return self.scale
        banned = logits == BANNED
        logits.div_(self.cap).tanh_()
        derivative: Tensor | float = 0.0
        if slope is not None:
            derivative = torch.mul(logits, logits, out=slope).neg_().add_(1).mul_(self.scale)
        logits.mul_(self.cap).masked_fill_(banned, BANNED)
        return derivative
