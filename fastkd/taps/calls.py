"""What an attention layer was called with, and whether a tap can tell its maps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastkd.errors import InputError

HIDDEN = -1e4  # what float masks have at most where nothing is to be seen


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call of the attention function.

    query, key: (B, heads, Tq, head size), (B, key heads, Tk, head size)
    mask: as the function takes it; mostly (B, 1, Tq, Tk), true or 0 where a query may attend
    refused: why query and key do not determine the maps; None where they do
    """

    query: Tensor
    key: Tensor
    mask: Any
    scale: float | None
    causal: bool
    refused: str | None


def shared_refusal(
    calls: list[AttentionCall], query_lengths: Tensor | None, key_lengths: Tensor | None
) -> str | None:
    """Why the layers of one kind cannot be served together, as one tap with these lengths."""
    first = calls[0]
    for call in calls:
        if call.refused:
            return call.refused
        if (call.scale, call.causal) != (first.scale, first.causal):
            return "layers that differ in scale or causality"
    if first.causal and first.query.shape[2] != first.key.shape[2]:
        return "a pass with a filled cache"
    masks = {id(call.mask): call.mask for call in calls}  # one for all layers, as a rule
    for mask in masks.values():
        # Others are for functions that are told of windows and packing by options; of a mask
        # without data nothing can be told.
        if isinstance(mask, Tensor) and mask.dim() == 4 and not isinstance(mask, FakeTensor):
            seen = _seen(first, query_lengths, key_lengths)
            if not _is_mask_of(mask, *seen):
                return "an attention mask beyond padding at the end and causality"
    return None


def _seen(
    call: AttentionCall, query_lengths: Tensor | None, key_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which keys a query attends to (B, 1, Tq, Tk), which queries are real (B, 1, Tq, 1)."""
    size, device = (call.query.shape[2], call.key.shape[2]), call.query.device
    every = torch.ones(size, dtype=torch.bool, device=device)
    seen, real = every.tril() if call.causal else every, every[:, :1]
    if key_lengths is not None:
        keys = torch.arange(size[1], device=device)
        seen = seen & (keys < key_lengths.to(device)[:, None, None, None])
    if query_lengths is not None:
        queries = torch.arange(size[0], device=device)[:, None]
        real = queries < query_lengths.to(device)[:, None, None, None]
    return seen, real


def _is_mask_of(mask: Tensor, seen: Tensor, real: Tensor) -> bool:
    """Whether real queries attend by the mask to what they are to see, with no bias added."""
    if mask.shape[-2:] != seen.shape[-2:]:
        return False
    shows, hides = (mask, ~mask) if mask.dtype == torch.bool else (mask == 0, mask <= HIDDEN)
    return bool((torch.where(seen, shows, hides) | ~real).all())


def lengths_of(name: str, mask: Any, instead: str) -> Tensor | None:
    """(B,) lengths of a mask (B, T) of ones, then zeros.

    instead: what was to be done where the mask is another
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"{name}: expected (B, T), not {found}; {instead}")
    kept = mask != 0
    if not bool((kept[:, 1:] <= kept[:, :-1]).all()):
        raise InputError(f"{name}: cannot serve left padding, expected it at the end; {instead}")
    return kept.sum(1)
