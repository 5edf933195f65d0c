"""Mask-predict: parallel decoding of a conditional masked language model in a few passes."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from fastkd.decode.beam import Hypotheses, Hypothesis
from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Encoded


@torch.no_grad()
def mask_predict(
    model: CMLM,
    source: Tensor,
    source_lengths: Tensor,
    *,
    passes: int,
    max_lengths: Tensor,
    length_window: int = 0,
    remove_duplicates: bool = False,
    reconsider: bool = False,
    banned: Sequence[int] = (),
    n_best: int = 1,
) -> Hypotheses:
    """The hypotheses with the highest mean log-probability of their pieces, over lengths tried.

    source: (S, Ts) ids, padded at the end; source_lengths: (S,) integers on the CPU
    passes: the first pass predicts every piece; after pass s of S, the floor(L · (S − s) / S)
        pieces of the L with the lowest log-probabilities are masked and predicted again
    max_lengths: (S,) integers on the CPU, at least 1: pieces that a hypothesis may have
    length_window: lengths tried are the predicted one ± so many
    remove_duplicates: drop a piece that repeats the one before it
    reconsider: a pass predicts the unmasked pieces anew too, as CMLMC does, instead of keeping
        them and their log-probabilities
    banned: ids that are never chosen; their probability is not given to the others
    n_best: hypotheses wanted of a sentence; fewer where fewer lengths are tried

    The model should be in evaluation mode. It is called inside whatever autocast is active.
    (Ghazvininejad et al., 2019, section 4; reconsider: Huang et al., 2022.)
    """
    encoded = model.encode(source, source_lengths)
    window = torch.arange(-length_window, length_window + 1)
    lengths = model.length.predict(encoded).cpu()[:, None] + window  # (S, K)
    lengths = lengths.clamp(min=1).minimum(max_lengths[:, None])
    candidates = encoded.repeat(len(window)) if length_window else encoded
    tokens, scores = fill_in(model, candidates, lengths.flatten(), passes, reconsider, banned)
    means = scores.sum(1).cpu() / lengths.flatten()  # (S · K,)
    ids, sizes, values = tokens.tolist(), lengths.flatten().tolist(), means.tolist()
    order = means.view_as(lengths).argsort(dim=1, descending=True, stable=True)
    lists: list[list[Hypothesis]] = []
    for sentence, places in enumerate(order.tolist()):
        found: dict[int, Hypothesis] = {}  # by length: the window may try one twice at its ends
        for place in places:
            row = sentence * len(window) + place
            if sizes[row] not in found and len(found) < n_best:
                found[sizes[row]] = Hypothesis(
                    _tidy(ids[row][: sizes[row]], remove_duplicates), values[row]
                )
        lists.append(list(found.values()))
    return Hypotheses(lists)


def _tidy(row: list[int], remove_duplicates: bool) -> list[int]:
    return [piece for piece, _ in groupby(row)] if remove_duplicates else row


def fill_in(
    model: CMLM,
    encoded: Encoded,
    lengths: Tensor,
    passes: int,
    reconsider: bool = False,
    banned: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Targets of given lengths (R,), found in `passes` passes from nothing but masks.

    Returns ids (R, T) with the end of sentence and padding after the pieces, and the pieces'
    log-probabilities (R, T), 0 elsewhere.
    """
    device = encoded.rows.device
    longest = int(lengths.max())
    places = torch.arange(longest + 1, device=device)
    ends = lengths.to(device)[:, None]
    pieces = places < ends  # (R, T)
    tokens = torch.where(places == ends, model.eos_id, model.pad_id)
    scores = torch.zeros(tokens.shape, device=device, dtype=torch.float32)
    masked = pieces
    for step in range(1, passes + 1):
        output = model.decode(tokens.masked_fill(masked, model.mask_id), encoded, lengths + 1)
        wanted = pieces if reconsider else masked
        ids, log_probs = model.best(output.rows[output.layout.rows(wanted)], banned)
        tokens = tokens.masked_scatter(wanted, ids)
        scores = scores.to(log_probs.dtype).masked_scatter(wanted, log_probs)
        counts = lengths * (passes - step) // passes
        if step == passes or not (reconsider or counts.any()):
            break
        masked = lowest(scores, pieces, counts.to(device))
    return tokens, scores


def lowest(scores: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """Where the counts[b] lowest of the scores (B, T) are that lie in `among` (B, T) bool.

    Of equal scores the earlier ones are taken; a row with fewer than counts[b] in `among` gives
    them all.
    """
    order = scores.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return (rank < counts[:, None]) & among
