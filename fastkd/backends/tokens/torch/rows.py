"""The losses of R rows of logits and their gradient, in a handful of passes over the scratch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.dense_teacher import DenseRows
from fastkd.backends.tokens.torch.listed_teacher import ListedRows
from fastkd.backends.tokens.torch.numerics import BANNED, banned_ids, log_z, softmax_
from fastkd.backends.tokens.torch.ranking import ranking
from fastkd.backends.tokens.torch.topk import top_ids
from fastkd.functional.calls import TokenOptions

TeacherRows = DenseRows | ListedRows


class RowLosses(NamedTuple):
    """Components (R,), None where their weight is 0, and what else was asked for."""

    ce: Tensor | None
    kd: Tensor | None
    rank: Tensor | None
    prediction: Tensor | None  # (R,)
    gradient: Tensor | None  # (R, V) of the weighted sum of the components
    entropy: Tensor | None = None


class StudentRows:
    """R rows of the student's `logits` (R, V), which are scratch and may become the gradient."""

    def __init__(
        self,
        logits: Tensor,
        teacher: TeacherRows | None,
        target: Tensor | None,
        options: TokenOptions,
    ) -> None:
        self.logits, self.teacher, self.options = logits, teacher, options
        self.target = None if target is None else target.unsqueeze(-1)  # (R, 1)
        self.temperature = options.student_temperature if teacher else 1.0

    def losses(self, differentiate: bool) -> RowLosses:
        options, teacher = self.options, self.teacher
        peak, prediction = self._choose()
        self._centre(peak)
        if teacher and options.kd_weight:
            teacher.compare(self.logits, self.banned, self.total, self.temperature)
        target_logit = None if self.target is None else self.logits.gather(1, self.target)
        self._softmax()
        ce = kd = self.rank = None
        if target_logit is not None:
            ce = self._cross_entropy(target_logit).squeeze(-1)
        if teacher and options.kd_weight:
            kd = teacher.divergence(self.log_z).squeeze(-1)
        if teacher and options.rank_weight:
            teacher_p, student_p = (self.p.gather(1, ids) for ids in self.ranked_ids)
            self.rank = ranking(teacher_p, student_p, self.preferred)
        gradient = self._gradient() if differentiate else None
        rank = None if self.rank is None else self.rank.loss.squeeze(-1)
        return RowLosses(ce, kd, rank, prediction, gradient)

    def _choose(self) -> tuple[Tensor, Tensor | None]:
        """The largest logits (R, 1), and what depends on order, before anything is rounded."""
        ranked = self.options.rank_weight != 0 and self.teacher is not None
        if not ranked and not self.options.return_prediction:
            return self.logits.amax(-1, keepdim=True), None
        values, ids = top_ids(self.logits, self.options.top_k if ranked else 1)  # (R, k)
        if ranked and self.teacher:
            teacher_ids, self.preferred = self.teacher.choose(ids.shape[1], ids)
            self.ranked_ids = (teacher_ids, ids)
        return values[:, :1], ids[:, 0] if self.options.return_prediction else None

    def _centre(self, peak: Tensor) -> None:
        """Shifts each row's maximum to 0; a row of −inf becomes one of zeros."""
        logits = self.logits
        self.banned, self.dead = banned_ids(logits), None
        self.allowed: Tensor | int = logits.shape[1]
        if self.banned is not None:
            self.dead = peak == BANNED  # (R, 1)
            logits.masked_fill_(self.dead, 0)
            peak = peak.masked_fill(self.dead, 0)
            self.allowed = (~self.banned).sum(-1, keepdim=True, dtype=logits.dtype).clamp(min=1)
        logits.sub_(peak)
        self.total = torch.zeros_like(peak)
        if self.options.label_smoothing or isinstance(self.teacher, ListedRows):
            finite = logits if self.banned is None else logits.masked_fill(self.banned, 0)
            self.total = finite.sum(-1, keepdim=True)

    def _softmax(self) -> None:
        """p, at temperature 1 and at the student's, and log Z of both."""
        if self.temperature == 1:
            self.p = self.p_one = softmax_(self.logits)
            self.log_z = self.log_z_one = log_z(self.p)
            return
        if self.target is not None:
            self.p_one = torch.softmax(self.logits, -1)
            self.log_z_one = log_z(self.p_one)
        self.p = softmax_(self.logits.div_(self.temperature))
        self.log_z = log_z(self.p)

    def _cross_entropy(self, target_logit: Tensor) -> Tensor:
        smoothing, ce = self.options.label_smoothing, torch.zeros_like(target_logit)
        if smoothing < 1:
            ce = (1 - smoothing) * (self.log_z_one - target_logit)
        if smoothing > 0:
            ce = ce + smoothing * (self.log_z_one - self.total / self.allowed)
        if self.dead is None:
            return ce
        return ce.masked_fill(self.dead, torch.inf if smoothing < 1 else 0)

    def _gradient(self) -> Tensor:
        """ce·(p₁ − smoothed one-hot) + [kd·(p·Σq − q) + rank·p ∘ (u − ⟨u, p⟩)]/τ."""
        options, smoothing = self.options, self.options.label_smoothing
        ce = options.ce_weight
        kd, rank = options.kd_weight / self.temperature, options.rank_weight / self.temperature
        gradient = self.p
        share: Tensor | float = 0.0  # what p is multiplied with
        uniform: Tensor | float = 0.0  # what is taken from every id
        if self.teacher and kd:
            share = kd * self.teacher.mass
        if self.rank is not None:
            share = share - rank * self.rank.loss
        if self.temperature == 1:
            share = share + ce
        if not (isinstance(share, float) and share == 1):
            gradient.mul_(share)
        if ce and self.temperature != 1:
            gradient.add_(self.p_one, alpha=ce)
        if self.teacher and kd:
            self.teacher.pull(gradient, kd)
            uniform = kd * self.teacher.rest
        if ce and smoothing:
            uniform = uniform + ce * smoothing / self.allowed
        if not (isinstance(uniform, float) and uniform == 0):
            gradient.sub_(uniform)
        if self.target is not None and smoothing < 1:
            hit = gradient.new_full(self.target.shape, -ce * (1 - smoothing))
            gradient.scatter_add_(1, self.target, hit)
        if self.rank is not None:
            pulls = (self.rank.teacher_pull, self.rank.student_pull)
            for ids, pull in zip(self.ranked_ids, pulls, strict=True):
                gradient.scatter_add_(1, ids, rank * pull)  # ids of a row differ: deterministic
        if self.banned is not None:
            gradient.masked_fill_(self.banned, 0)
        return gradient
