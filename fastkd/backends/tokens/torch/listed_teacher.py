"""One chunk of a teacher known at K ids."""

import math

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.numerics import BANNED
from fastkd.backends.tokens.torch.topk import top_ids


class ListedRows:
    """As `DenseRows`, from ids (R, K) and log q (R, K) at temperature 1."""

    def __init__(
        self, ids: Tensor, log_probs: Tensor, rest: str, vocabulary: int, temperature: float
    ) -> None:
        self.ids, order = ids.sort(-1)
        self.scores = log_probs.gather(1, order)
        self.temperature, self.vocabulary = temperature, vocabulary
        self.unlisted = vocabulary - ids.shape[1]
        self.kind = rest
        self.rest_score = torch.full_like(self.scores[:, :1], BANNED)
        if rest == "spread" and self.unlisted:
            missing = 1 - self.scores.exp().sum(-1, keepdim=True)
            self.rest_score = (missing.clamp(min=0) / self.unlisted).log()

    def choose(self, k: int, student_ids: Tensor) -> tuple[Tensor, Tensor]:
        values, places = top_ids(self.scores, k)
        has_mass = (values[:, :1] > BANNED) | (self.rest_score > BANNED)
        ids = self.ids.gather(1, places)
        ids = ids.where(has_mass, ids[:, :1])
        same = student_ids.unsqueeze(-1) == self.ids.unsqueeze(-2)  # (R, k, K)
        theirs = self.scores.unsqueeze(-2).where(same, BANNED).amax(-1)
        theirs = theirs.where(same.any(-1), self.rest_score)
        return ids, values.unsqueeze(-1) > theirs.unsqueeze(-2)

    def part(self, rows: slice) -> "ListedRows":
        return ListedRows(
            self.ids[rows], self.scores[rows], self.kind, self.vocabulary, self.temperature
        )

    def taught(self) -> Tensor:
        """Which rows have any mass at an id, (R,)."""
        return ((self.scores > BANNED).any(-1, True) | (self.rest_score > BANNED)).squeeze(-1)

    def log_probs(self) -> Tensor:
        """log q (R, V) of all ids."""
        self._temper()
        log_q = self.rest_log_q.repeat(1, self.vocabulary)
        # Padding may repeat an id that has mass.
        log_q.scatter_(1, self.ids, BANNED)
        return log_q.scatter_reduce_(1, self.ids, self.log_q, "amax")

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """The ids (R, K), and log q of them and of all that is not listed, (R, K + 1)."""
        self._temper()
        missing = 1 - self.log_q.exp().sum(-1, keepdim=True)
        # Where every id is listed there is no other outcome, and what misses is rounding.
        others = (self.log_q > BANNED).sum(-1, keepdim=True) < self.vocabulary
        missing = missing.where(others, 0)
        return self.ids, torch.cat([self.log_q, missing.clamp(min=0).log()], -1)

    def compare(
        self, student: Tensor, banned: Tensor | None, total: Tensor, temperature: float
    ) -> None:
        self._temper()
        self.q, self.rest = self.log_q.exp(), self.rest_log_q.exp()
        self.mass = self.q.sum(-1, keepdim=True) + self.unlisted * self.rest
        self.student = student.gather(1, self.ids) / temperature  # (R, K)
        self.free = torch.ones_like(self.ids, dtype=torch.bool)  # ids that the student may take
        if banned is not None:
            self.free = ~banned.gather(1, self.ids)
        self.hit = (~self.free & (self.log_q > BANNED)).any(-1, keepdim=True)
        self.others = torch.full_like(self.rest, self.unlisted)  # not listed and not banned
        if banned is not None:
            self.others = (~banned).sum(-1, keepdim=True) - self.free.sum(-1, keepdim=True)
            self.hit |= (self.others < self.unlisted) & (self.rest_log_q > BANNED)
        listed = self.student.where(self.free, 0).sum(-1, keepdim=True)
        self.others_total = total / temperature - listed  # Σ of their logits

    def _temper(self) -> None:
        """log q and log of the mass of an unlisted id: q^(1/τ), scaled to the sum of q."""
        if self.temperature == 1 and self.kind != "renormalize":
            self.log_q, self.rest_log_q = self.scores, self.rest_score
            return
        log_count = math.log(self.unlisted) if self.unlisted else BANNED
        scores = torch.cat([self.scores, self.rest_score], -1)
        tempered = scores / self.temperature
        shift = _log_sum(tempered, log_count)
        if self.kind != "renormalize":
            shift = shift - _log_sum(scores, log_count)
        tempered = torch.where(tempered > BANNED, tempered - shift, BANNED)
        self.log_q, self.rest_log_q = tempered.split([self.scores.shape[1], 1], -1)

    def divergence(self, student_log_z: Tensor) -> Tensor:
        terms = self.q * (self.log_q - self.student + student_log_z)
        kd = terms.where((self.log_q > BANNED) & self.free, 0).sum(-1, keepdim=True)
        if self.kind == "spread":
            others = self.others * (self.rest_log_q + student_log_z) - self.others_total
            kd = kd + (self.rest * others).where(self.rest_log_q > BANNED, 0)
        return kd.masked_fill(self.hit, torch.inf)

    def pull(self, gradient: Tensor, factor: float) -> None:
        gradient.scatter_add_(1, self.ids, -factor * (self.q - self.rest))


def _log_sum(scores: Tensor, log_count: float) -> Tensor:
    """log(Σ_listed exp + count·exp of the last column), (R, 1)."""
    scores = torch.cat([scores[:, :-1], scores[:, -1:] + log_count], -1)
    return scores.logsumexp(-1, keepdim=True)
