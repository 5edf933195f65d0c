"""Batches: which sentences form an update, and their padded tensors."""

from collections.abc import Iterable, Sequence
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
            if device.type == "cuda":
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
    turn, so that neighbours differ little on both. Where batches begin, which sentences of equal
    lengths share one, and the order of the batches are drawn anew from (`seed`, epoch).

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
        self.batch_tokens = batch_tokens
        self.seed = seed
        self._longer = np.maximum(self.source_lengths, self.target_lengths)
        longest = int(self._longer.max(initial=0))
        if longest > batch_tokens:
            raise InputError(
                f"training.batch_tokens = {batch_tokens:,} is less than the longest sentence; "
                f"expected at least {longest:,} (pieces, end-of-sentence included)"
            )

    def epoch(self, number: int) -> list[np.ndarray]:
        """Batches of epoch `number`: sentence ids, int64, each array one update's."""
        random = np.random.default_rng([self.seed % 2**64, number])
        order = self._ordered(random)
        # A first batch of another size moves the bounds of all that follow.
        first = int(self.batch_tokens * random.uniform(0.5, 1))
        batches = self._cut(order, first)
        return [batches[place] for place in random.permutation(len(batches))]

    def split(self, ids: np.ndarray, parts: int) -> list[np.ndarray]:
        """Cuts a batch into `parts` runs of about equally many tokens.

        None is empty unless there are fewer sentences than parts.
        """
        count = len(ids)
        tokens = np.cumsum(self.source_lengths[ids] + self.target_lengths[ids])
        bounds = np.zeros(parts - 1, np.int64)
        if count:
            shares = np.arange(1, parts) * (tokens[-1] / parts)
            middles = tokens - np.diff(tokens, prepend=0) / 2
            bounds = np.searchsorted(middles, shares)
        if count >= parts:
            steps = np.arange(1, parts)
            bounds = np.maximum.accumulate(np.maximum(bounds, 1) - steps) + steps
            bounds = np.minimum(bounds, count - parts + steps)
        return np.split(ids, bounds)

    def padding_share(self, batches: Iterable[np.ndarray] | None = None) -> float:
        """Share of padding in the positions of both sides of `batches`, by default epoch 1's."""
        real = padded = 0
        for ids in self.epoch(1) if batches is None else batches:
            for lengths in (self.source_lengths[ids], self.target_lengths[ids]):
                real += int(lengths.sum())
                padded += len(ids) * int(lengths.max(initial=0))
        return 1 - real / padded if padded else 0.0

    def _ordered(self, random: np.random.Generator) -> np.ndarray:
        """All sentences, the longer side rising, neighbours alike on both sides."""
        _, step = np.unique(self._longer, return_inverse=True)
        difference = self.target_lengths - self.source_lengths
        downwards = (step + random.integers(2)) % 2 == 1
        place = np.where(downwards, -difference, difference) + self.batch_tokens
        cell = step * (2 * self.batch_tokens) + place
        shuffled = random.permutation(len(cell))
        return shuffled[np.argsort(cell[shuffled], kind="stable")]

    def _cut(self, order: np.ndarray, first: int) -> list[np.ndarray]:
        """Runs of `order` that fit; the first one into `first` tokens, if it can."""
        longer = self._longer[order]  # rising
        batches, begin, limit = [], 0, first
        while begin < len(order):
            most = max(1, limit // int(longer[begin]))
            ahead = longer[begin : begin + most]
            sizes = ahead * np.arange(1, len(ahead) + 1)
            count = max(1, int(np.searchsorted(sizes, limit, side="right")))
            batches.append(order[begin : begin + count])
            begin, limit = begin + count, self.batch_tokens
        return batches


def _padded(side: Side, ids: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B, T) of ids that end with end-of-sentence, and their lengths with it."""
    tokens, lengths = side.gather(ids)
    width = int(lengths.max(initial=0)) + 1
    rows = np.full((len(ids), width), tokenizer.pad_id, np.int64)
    rows[np.arange(width) < lengths[:, None]] = tokens
    rows[np.arange(len(ids)), lengths] = tokenizer.eos_id
    return rows, lengths + 1
