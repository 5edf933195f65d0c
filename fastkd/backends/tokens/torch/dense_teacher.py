"""One chunk of a teacher known by its logits."""

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.numerics import BANNED, banned_ids, log_z
from fastkd.backends.tokens.torch.topk import top_ids


class DenseRows:
    """Answers about R rows, asked in the order of the methods; `logits`, `spare` are scratch."""

    def __init__(self, logits: Tensor, spare: Tensor | None, temperature: float) -> None:
        self.logits, self.spare, self.temperature = logits, spare, temperature  # (R, V)
        self.mass: Tensor | float = 1.0  # Σq, (R, 1)
        self.rest: Tensor | float = 0.0  # q at ids that `pull` leaves out
        self.hit: Tensor | None = None  # (R, 1): mass on an id that the student bans

    def choose(self, k: int, student_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's k ids (R, k) and 1[q(t_i) > q(s_j)] (R, i, j)."""
        values, ids = top_ids(self.logits, k)
        # Without any mass there is no order: one id alone makes no pair.
        ids = ids.where(values[:, :1] > BANNED, ids[:, :1])
        theirs = self.logits.gather(1, student_ids)
        return ids, values.unsqueeze(-1) > theirs.unsqueeze(-2)

    def part(self, rows: slice) -> "DenseRows":
        return DenseRows(self.logits[rows], None, self.temperature)

    def taught(self) -> Tensor:
        """Which rows have any mass, (R,)."""
        return self.logits.amax(-1) > BANNED

    def log_probs(self) -> Tensor:
        """log q (R, V); −inf throughout a row without mass."""
        log_q = torch.log_softmax(self.logits / self.temperature, -1)
        return log_q.where(self.taught().unsqueeze(-1), BANNED)

    def compare(
        self, student: Tensor, banned: Tensor | None, total: Tensor, temperature: float
    ) -> None:
        """Leaves log q − log p, but for both log Z, in place of the logits.

        student: (R, V), at most 0, before its `temperature`
        """
        logits, own = self.logits, banned_ids(self.logits)
        peak = logits.amax(-1, keepdim=True)
        empty = None
        if own is not None:
            empty = peak == BANNED
            logits.masked_fill_(empty, 0)
            peak.masked_fill_(empty, 0)
        logits.sub_(peak)
        if self.temperature != 1:
            logits.div_(self.temperature)
        self.q = torch.softmax(logits, -1, out=self.spare)
        self.log_z = log_z(self.q)
        if empty is not None:
            self.q.masked_fill_(empty, 0)
            self.mass = (~empty).to(logits.dtype)
        logits.sub_(student, alpha=1 / temperature)
        if banned is not None:
            missed = banned if own is None else banned & ~own
            self.hit = missed.any(-1, keepdim=True)
            logits.masked_fill_(banned, 0)
        if own is not None:
            logits.masked_fill_(own, 0)

    def divergence(self, student_log_z: Tensor) -> Tensor:
        """KL(q ‖ p) (R, 1)."""
        terms = self.logits.sub_(self.log_z - student_log_z).mul_(self.q)
        kd = terms.sum(-1, keepdim=True)
        return kd if self.hit is None else kd.masked_fill(self.hit, torch.inf)

    def pull(self, gradient: Tensor, factor: float) -> None:
        """gradient −= factor·(q − rest)."""
        gradient.sub_(self.q, alpha=factor)
