"""Which update of a run takes the most memory, and a batch of that shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from fastkd.config.tree import Config, TokenizerConfig
from fastkd.data.batches import Batch, BatchPlan, split
from fastkd.data.corpus import Corpus
from fastkd.data.prepare import open_prepared
from fastkd.errors import InputError, NotPrepared

ASSUMED_LENGTH = 32  # pieces a sentence, where no corpus says


@dataclass(frozen=True, eq=False)
class Update:
    """Lengths of an update's sentences on both sides, end-of-sentence included, (B,) int64."""

    source_lengths: np.ndarray
    target_lengths: np.ndarray

    @property
    def sentences(self) -> int:
        return len(self.source_lengths)

    @property
    def tokens(self) -> int:
        return int(self.source_lengths.sum() + self.target_lengths.sum())

    @property
    def corpus(self) -> Corpus:
        """Its lengths as a `Corpus` has them, without end-of-sentence; nothing else of one."""
        lengths = SimpleNamespace(
            source_lengths=self.source_lengths - 1, target_lengths=self.target_lengths - 1
        )
        return cast(Corpus, lengths)

    @property
    def positions(self) -> int:
        """Of both sides, padding included."""
        return self.sentences * int(self.source_lengths.max() + self.target_lengths.max())

    @property
    def cells(self) -> int:
        """Of one attention map of each kind."""
        source, target = int(self.source_lengths.max()), int(self.target_lengths.max())
        return self.sentences * (source * source + target * target + source * target)

    def describe(self) -> str:
        source, target = int(self.source_lengths.max()), int(self.target_lengths.max())
        return f"{self.sentences} sentences of up to {source} and {target} pieces"

    def pieces(self, parts: int, vocabulary: "Vocabulary", seed: int = 0) -> list[Batch]:
        """The update in `parts` batches of random ids."""
        random = np.random.default_rng(seed)
        cut = split(self.corpus, np.arange(self.sentences), parts)
        return [self._batch(ids, vocabulary, random) for ids in cut if len(ids)]

    def _batch(
        self, ids: np.ndarray, vocabulary: "Vocabulary", random: np.random.Generator
    ) -> Batch:
        def side(lengths: np.ndarray, size: int) -> torch.Tensor:
            rows = random.integers(4, size, (len(lengths), int(lengths.max())))
            rows[np.arange(rows.shape[1]) >= lengths[:, None]] = vocabulary.pad_id
            return torch.from_numpy(rows)

        source_lengths, target_lengths = self.source_lengths[ids], self.target_lengths[ids]
        target = side(target_lengths, vocabulary.target.size)
        return Batch(
            source=side(source_lengths, vocabulary.source.size),
            source_lengths=torch.from_numpy(source_lengths),
            decoder_input=target.clone(),
            target=target,
            target_lengths=torch.from_numpy(target_lengths),
            sentence_ids=torch.from_numpy(ids),
        )


@dataclass(frozen=True)
class Vocabulary:
    """Sizes alone: what a model needs of `Tokenizers` to be built."""

    source: SimpleNamespace
    target: SimpleNamespace

    @classmethod
    def of_sizes(cls, source: int, target: int) -> "Vocabulary":
        special = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "mask_id": 3}
        return cls(*(SimpleNamespace(size=size, **special) for size in (source, target)))

    @property
    def pad_id(self) -> int:
        return int(self.target.pad_id)


@dataclass(frozen=True)
class Workload:
    """The updates of a run: `heaviest(batch_tokens)` are the candidates for the largest peak."""

    vocabulary: Vocabulary
    heaviest: Callable[[int], Sequence[Update]]
    source: str  # where the lengths come from


def workload(config: Config) -> Workload:
    """From the prepared corpus; where there is none yet, from lengths that are assumed.

    Raises InputError where it is damaged.
    """
    try:
        prepared = open_prepared(config, texts=False)
    except NotPrepared:
        return _assumed(config)
    source, target = prepared.tokenizers.source, prepared.tokenizers.target
    corpus, seed = prepared.train, config.training.seed
    lengths = np.asarray(corpus.source_lengths), np.asarray(corpus.target_lengths)

    def heaviest(batch_tokens: int) -> list[Update]:
        plan = BatchPlan(*lengths, batch_tokens, seed)
        updates = [
            Update(plan.source_lengths[ids], plan.target_lengths[ids]) for ids in plan.epoch(1)
        ]
        return _candidates(updates)

    vocabulary = Vocabulary.of_sizes(source.size, target.size)
    return Workload(vocabulary, heaviest, f"epoch 1 of {config.data.prepared}")


def _assumed(config: Config) -> Workload:
    tokenizer = config.tokenizer
    size = tokenizer.vocabulary if isinstance(tokenizer, TokenizerConfig) else 8000
    longest = config.data.max_length

    def heaviest(batch_tokens: int) -> list[Update]:
        if batch_tokens < longest:
            raise InputError(
                f"training.batch_tokens = {batch_tokens:,}: expected at least data.max_length"
                f" = {longest:,}"
            )
        updates = []
        for length in sorted({min(ASSUMED_LENGTH, longest), longest}):
            lengths = np.full(batch_tokens // length, length, np.int64)
            updates.append(Update(lengths, lengths))
        return updates

    short = min(ASSUMED_LENGTH, longest)
    source = (
        f"lengths assumed, {short} or {longest} pieces a sentence, and a vocabulary of {size:,}:"
        f" {config.data.prepared} is not prepared"
    )
    return Workload(Vocabulary.of_sizes(size, size), heaviest, source)


def _candidates(updates: list[Update]) -> list[Update]:
    """Those with the most positions, the most cells and the most tokens; each once."""
    measures: list[Callable[[Update], int]] = [
        lambda update: update.positions,
        lambda update: update.cells,
        lambda update: update.tokens,
    ]
    chosen = [max(updates, key=measure) for measure in measures]
    return list({id(update): update for update in chosen}.values())
