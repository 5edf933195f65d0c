"""Cross-entropy alone, in fewer passes than the losses of a teacher take."""

from torch import Tensor

from fastkd.backends.tokens_torch.numerics import BANNED, log_softmax_, readable
from fastkd.backends.tokens_torch.row_losses import RowLosses
from fastkd.backends.tokens_torch.topk import top_ids
from fastkd.functional.options import TokenOptions


def is_plain(logits: Tensor, target: Tensor) -> bool:
    """Whether no row of `logits` (R, V) is −inf as a whole or at its `target` (R,).

    False also where a look at some of the values does not tell.
    """
    if not readable(logits):
        return False
    hit = logits.gather(1, target.unsqueeze(-1))
    return not bool((hit == BANNED).any() or (logits[:, 0] == BANNED).any())


class CrossEntropyRows:
    """R rows of plain `logits` (R, V), which are scratch and become the gradient."""

    def __init__(self, logits: Tensor, target: Tensor, options: TokenOptions) -> None:
        self.logits, self.target, self.options = logits, target.unsqueeze(-1), options

    def losses(self, differentiate: bool) -> RowLosses:
        prediction = None
        if self.options.return_prediction:
            prediction = top_ids(self.logits, 1)[1].squeeze(-1)
        log_p = log_softmax_(self.logits)
        smoothing = self.options.label_smoothing
        ce = (smoothing - 1) * log_p.gather(1, self.target)
        if smoothing:
            ce -= smoothing * self._mean(log_p)
        gradient = self._gradient(log_p) if differentiate else None
        return RowLosses(ce.squeeze(-1), None, None, prediction, gradient)

    def _mean(self, log_p: Tensor) -> Tensor:
        """Of each row's entries that are not −inf, (R, 1); notes which these are."""
        self.banned: Tensor | None = None
        self.allowed: Tensor | int = log_p.shape[1]
        total = log_p.sum(-1, keepdim=True)
        if (total == BANNED).any():
            self.banned = log_p == BANNED
            self.allowed = (~self.banned).sum(-1, keepdim=True, dtype=log_p.dtype)
            total = log_p.masked_fill(self.banned, 0).sum(-1, keepdim=True)
        return total / self.allowed

    def _gradient(self, log_p: Tensor) -> Tensor:
        """ce·(p − smoothed one-hot)."""
        weight, smoothing = self.options.ce_weight, self.options.label_smoothing
        gradient = log_p.exp_()
        if weight != 1:
            gradient.mul_(weight)
        if smoothing:
            gradient.sub_(weight * smoothing / self.allowed)
            if self.banned is not None:
                gradient.masked_fill_(self.banned, 0)
        hit = gradient.new_full(self.target.shape, weight * (smoothing - 1))
        return gradient.scatter_add_(1, self.target, hit)
