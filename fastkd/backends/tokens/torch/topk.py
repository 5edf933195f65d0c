"""The largest entries of rows, equal ones by rising id, which torch.topk does not promise."""

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.numerics import at_hand

BLOCK = 64
SMALL = 2**15  # entries that are sooner looked through than divided


def top_ids(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of `scores` (R, V) in falling order and their ids, both (R, k)."""
    rows, vocabulary = scores.shape
    if scores.numel() <= SMALL or vocabulary < 2 * k * BLOCK:
        ids = _first(scores, k)
        return scores.gather(1, ids), ids
    # With blocks in the order (largest entry, then lower id), the k largest entries lie in the
    # first k blocks: each of these blocks holds an entry that precedes all of any later block.
    whole = vocabulary // BLOCK * BLOCK
    peaks = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    if whole < vocabulary:
        peaks = torch.cat([peaks, scores[:, whole:].amax(-1, keepdim=True)], 1)
    chosen = _first(peaks, k).sort(-1).values  # (R, k)
    inside = torch.arange(BLOCK, device=scores.device)
    candidates = (chosen.unsqueeze(-1) * BLOCK + inside).view(rows, k * BLOCK)  # rising ids
    values = scores.gather(1, candidates.clamp(max=vocabulary - 1))
    if whole < vocabulary:
        values.masked_fill_(candidates >= vocabulary, -torch.inf)
    places = _first(values, k)
    return values.gather(1, places), candidates.gather(1, places)


def _first(scores: Tensor, k: int) -> Tensor:
    """Places (R, k) of the k largest, equal ones by rising place."""
    size = scores.shape[1]
    if k < size and at_hand(scores):
        values, places = scores.topk(k + 1)
        places = places[:, :k]
        tied = (values[:, 1:] == values[:, :-1]).any(1)
        if tied.any():
            places[tied] = _first_of_equals(scores[tied], k)
        return places
    return _first_of_equals(scores, k)


def _first_of_equals(scores: Tensor, k: int) -> Tensor:
    size = scores.shape[1]
    if scores.dtype != torch.float32:
        return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    # One integer holds score and place, so that no two entries of a row are equal.
    bits = (scores + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    backwards = torch.arange(size - 1, -1, -1, device=scores.device)
    return ((ordered.long() << 32) | backwards).topk(k).indices
