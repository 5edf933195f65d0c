"""Cross-entropy by itself: what a small call is made of is taken in as few steps as can be."""

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.numerics import BANNED, at_hand, log_z, softmax_
from fastkd.backends.tokens.torch.rows import RowLosses
from fastkd.functional.calls import TokenOptions


def serves(logits: Tensor, teacher: object, target: Tensor | None, options: TokenOptions) -> bool:
    """Whether nothing else is asked for, and a look can tell that every row has a score."""
    if target is None or teacher is not None or not at_hand(logits):
        return False
    return not (options.entropy_weight or options.label_smoothing or options.return_prediction)


def cross_entropy(
    logits: Tensor, target: Tensor, options: TokenOptions, differentiate: bool
) -> RowLosses | None:
    """Of logits (R, V), which become the gradient; None, and nothing done, where a row is empty."""
    peak = logits.amax(-1, keepdim=True)  # (R, 1)
    if bool((peak == BANNED).any()):
        return None
    ids = target.unsqueeze(-1)
    hit = logits.gather(1, ids)
    # A softmax needs no shift of its own, and is 0 at a banned id.
    p = softmax_(logits)
    ce = (log_z(p) - (hit - peak)).squeeze(-1)
    if not differentiate:
        return RowLosses(ce, None, None, None, None)
    weight = options.ce_weight
    if weight != 1:
        p.mul_(weight)
    p.scatter_add_(1, ids, torch.full_like(hit, -weight).masked_fill_(hit == BANNED, 0))
    return RowLosses(ce, None, None, None, p)
