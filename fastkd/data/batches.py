"""Batches: which sentences form an update, and their padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch

from fastkd.data.corpus import Corpus, Side
from fastkd.data.tokenizer import Tokenizer, Tokenizers
from fastkd.errors import InputError


@dataclass(frozen=True)
class Batch:
    """Some pairs, padded at the end; lengths count end-of-sentence and stay on the CPU."""

    source: torch.Tensor  # (B, Ts) int64, ends with end-of-sentence
    source_lengths: torch.Tensor  # (B,) int64
    decoder_input: torch.Tensor  # (B, Tt) int64: the decoder's start id, then the target
    target: torch.Tensor  # (B, Tt) int64, ends with end-of-sentence
    target_lengths: torch.Tensor  # (B,) int64
    sentence_ids: torch.Tensor  # (B,) int64

    def __len__(self) -> int:
        return len(self.source_lengths)

    @property
    def target_tokens(self) -> int:
        """Target positions that count in a loss."""
        return int(self.target_lengths.sum())

    @property
    def positions(self) -> int:
        """Positions of both sides that a model computes, padding included."""
        return self.source.numel() + self.target.numel()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its ids on `device`, copied without waiting for a GPU."""
        device = torch.device(device)
        if device == self.source.device:
            return self
        moved = {}
        for name in ("source", "decoder_input", "target"):
            ids = getattr(self, name)
            if device.type == "cuda" and not ids.is_cuda:
                ids = ids.pin_memory()
            moved[name] = ids.to(device, non_blocking=True)
        return replace(self, **moved)


def collate(
    corpus: Corpus,
    ids: Sequence[int] | np.ndarray,
    tokenizers: Tokenizers,
    decoder_start: Literal["bos", "eos", "pad"] = "bos",
) -> Batch:
    """The pairs `ids` of `corpus`, in that order, as a batch (which may be empty)."""
    ids = np.asarray(ids, dtype=np.int64)
    source, source_lengths = _padded(corpus.sides[0], ids, tokenizers.source)
    target, target_lengths = _padded(corpus.sides[1], ids, tokenizers.target)
    start = getattr(tokenizers.target, f"{decoder_start}_id")
    rows, columns = np.arange(len(ids)), target_lengths - 1
    decoder_input = np.empty_like(target)
    decoder_input[:, 1:] = target[:, :-1]
    decoder_input[:, 0] = start
    # The longest rows end with the target itself; in the others end-of-sentence was shifted in.
    shorter = columns + 1 < target.shape[1]
    decoder_input[rows[shorter], columns[shorter] + 1] = tokenizers.target.pad_id
    arrays = (source, source_lengths, decoder_input, target, target_lengths, ids)
    return Batch(
        **{
            field.name: torch.from_numpy(array)
            for field, array in zip(fields(Batch), arrays, strict=True)
        }
    )


class BatchPlan:
    """Which sentences form each update of each epoch.

    Every epoch takes every sentence once. A batch holds as many sentences of similar source and
    target length as fit: sentences × longest side <= `batch_tokens`. Sentences are ordered by
    their longer side and, within one length of it, by the difference of the sides, up and down in
    turn, so that neighbours differ little on both. Which neighbours share a batch, and the order
    of the batches, are drawn anew from (`seed`, epoch); how many batches there are is not.

    Args:
        source_lengths: (sentences,) pieces, without end-of-sentence.
        target_lengths: (sentences,) likewise.
        batch_tokens: the size of an update, padding and end-of-sentence included.
        seed: of the random choices.

    Raises:
        InputError: a sentence alone is longer than `batch_tokens`.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        batch_tokens: int,
        seed: int = 1,
    ) -> None:
        self.source_lengths = source_lengths.astype(np.int64) + 1
        self.target_lengths = target_lengths.astype(np.int64) + 1
        self.seed = seed
        longer = np.maximum(self.source_lengths, self.target_lengths)
        longest = int(longer.max(initial=0))
        if longest > batch_tokens:
            raise InputError(
                f"training.batch_tokens = {batch_tokens:,} is less than the longest sentence; "
                f"expected at least {longest:,} (pieces, end-of-sentence included)"
            )
        _, self._step = np.unique(longer, return_inverse=True)  # rank of the longer side's length
        self._bounds = _bounds(np.sort(longer), batch_tokens)

    @property
    def batches(self) -> int:
        """Updates in an epoch."""
        return len(self._bounds)

    def epoch(self, number: int) -> list[np.ndarray]:
        """Batches of epoch `number`: sentence ids, int64, each array one update's."""
        random = np.random.default_rng([self.seed % 2**64, number])
        difference = self.target_lengths - self.source_lengths
        downwards = (self._step + random.integers(2)) % 2 == 1
        # Less than a piece up or down hardly adds padding and gives each sentence other neighbours.
        place = difference + random.uniform(-0.75, 0.75, len(difference))
        order = np.lexsort((np.where(downwards, -place, place), self._step))
        batches = np.split(order, self._bounds[:-1])[: self.batches]
        return [batches[index] for index in random.permutation(self.batches)]

    def padding_share(self, number: int = 1) -> float:
        """Share of padding in the positions of both sides, in epoch `number`."""
        real = padded = 0
        for ids in self.epoch(number):
            for lengths in (self.source_lengths[ids], self.target_lengths[ids]):
                real += int(lengths.sum())
                padded += len(ids) * int(lengths.max())
        return 1 - real / padded if padded else 0.0


def split(corpus: Corpus, ids: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cuts a batch of `corpus` into `parts` runs of about equally many tokens.

    None is empty unless there are fewer sentences than parts.
    """
    count = len(ids)
    tokens = corpus.source_lengths[ids].astype(np.int64) + corpus.target_lengths[ids] + 2
    steps = np.arange(1, parts)
    middles = np.cumsum(tokens) - tokens / 2
    bounds = np.searchsorted(middles, steps * (tokens.sum() / parts))
    if count >= parts:
        bounds = np.maximum.accumulate(np.maximum(bounds, 1) - steps) + steps
        bounds = np.minimum(bounds, count - parts + steps)
    return np.split(ids, bounds)


def _bounds(longer: np.ndarray, batch_tokens: int) -> np.ndarray:
    """Ends of the longest runs that fit; `longer` (sentences,) rises, so a run's last counts."""
    ends, begin = [], 0
    while begin < len(longer):
        ahead = longer[begin : begin + batch_tokens // int(longer[begin])]
        sizes = ahead * np.arange(1, len(ahead) + 1)
        begin += int(np.searchsorted(sizes, batch_tokens, side="right"))
        ends.append(begin)
    return np.array(ends, np.int64)


def _padded(side: Side, ids: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, T) of ids that end with end-of-sentence, and their lengths with it."""
    tokens, lengths = side.gather(ids)
    width = int(lengths.max(initial=0)) + 1
    rows = np.full((len(ids), width), tokenizer.pad_id, np.int64)
    rows[np.arange(width) < lengths[:, None]] = tokens
    rows[np.arange(len(ids)), lengths] = tokenizer.eos_id
    return rows, lengths + 1
