"""How a batch is cut so that the workspace stays within a budget and padding costs little."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.attention.torch.batch import Batch, Real

WASTE = 1.15  # cells computed per cell counted, where sentences of different lengths are joined


@dataclass(frozen=True)
class Block:
    """Query rows [start, stop) of a unit's sentences, against its first `keys` keys."""

    start: int
    stop: int
    keys: int
    seen: Tensor | None  # (sentences, rows) keys that count, 0 where the row does not; None: all

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Unit:
    """Sentences computed together; more than one only where a single block holds them."""

    sentences: tuple[int, ...]
    rows: int
    keys: int
    blocks: tuple[Block, ...] = ()
    real_rows: Tensor | None = None  # (sentences,) where some of rows or keys are padding
    real_keys: Tensor | None = None

    @property
    def ragged(self) -> bool:
        return self.real_rows is not None

    @property
    def contiguous(self) -> bool:
        first, last = self.sentences[0], self.sentences[-1]
        return self.sentences == tuple(range(first, last + 1))


class Plan:
    """The units of a batch."""

    def __init__(self, batch: Batch, cell_budget: int, row_cells: int) -> None:
        """cell_budget: cells of one map that may be held at once; row_cells: what a row of queries
        and keys takes besides, in the same measure."""
        self.batch = batch
        self.budget = max(cell_budget, 1)
        self.row_cells = row_cells
        make = self._of_known_lengths if batch.known else self._of_unknown_lengths
        self.units = tuple(make())

    def _of_known_lengths(self) -> Iterator[Unit]:
        joined: list[Real] = []
        for real in self.batch.real():
            if joined and not self._fit([*joined, real]):
                yield self._joined(joined)
                joined = []
            if self._cells(real.rows, real.keys) > self.budget:
                yield self._cut(real)
            else:
                joined.append(real)
        if joined:
            yield self._joined(joined)

    def _cells(self, rows: int, keys: int) -> int:
        return rows * keys + (rows + keys) * self.row_cells

    def _fit(self, together: Sequence[Real]) -> bool:
        rows, keys = most(together)
        computed = len(together) * rows * keys
        counted = sum(each.rows * each.keys for each in together)
        within = len(together) * self._cells(rows, keys) <= self.budget
        return within and computed <= WASTE * counted

    def _joined(self, together: Sequence[Real]) -> Unit:
        together = sorted(together, key=lambda each: each.sentence)
        sentences = tuple(each.sentence for each in together)
        rows, keys = most(together)
        ragged = any(each.rows < rows or each.keys < keys for each in together)
        real_rows = torch.tensor([each.rows for each in together])
        real_keys = torch.tensor([each.keys for each in together])
        seen = None
        if ragged or self.batch.causal:
            seen = self.batch.move(self.batch.seen(real_rows, real_keys, 0, rows))
        blocks = (Block(0, rows, keys, seen),)
        if not ragged:
            return Unit(sentences, rows, keys, blocks)
        real_rows, real_keys = self.batch.move(real_rows), self.batch.move(real_keys)
        return Unit(sentences, rows, keys, blocks, real_rows, real_keys)

    def _cut(self, real: Real) -> Unit:
        """One long sentence, in blocks of query rows."""
        blocks = []
        height = max(1, self.budget // real.keys)
        for start in range(0, real.rows, height):
            stop = min(real.rows, start + height)
            keys, seen = real.keys, None
            if self.batch.causal:
                keys = min(stop, keys)
                counts = torch.tensor([real.rows]), torch.tensor([real.keys])
                seen = self.batch.move(self.batch.seen(*counts, start, stop))
            blocks.append(Block(start, stop, keys, seen))
        return Unit((real.sentence,), real.rows, real.keys, tuple(blocks))

    def _of_unknown_lengths(self) -> Iterator[Unit]:
        """Every sentence at full length: on such a device the host must not ask for lengths."""
        batch = self.batch
        together = max(1, self.budget // self._cells(batch.queries, batch.keys))
        height = batch.queries if together > 1 else max(1, self.budget // batch.keys)
        for first in range(0, batch.sentences, together):
            sentences = tuple(range(first, min(batch.sentences, first + together)))
            real_rows, real_keys = (each[first : first + together] for each in batch.lengths())
            blocks = []
            for start in range(0, batch.queries, height):
                stop = min(batch.queries, start + height)
                seen = batch.seen(real_rows, real_keys, start, stop)
                blocks.append(Block(start, stop, batch.keys, seen))
            yield Unit(sentences, batch.queries, batch.keys, tuple(blocks), real_rows, real_keys)


def most(together: Sequence[Real]) -> tuple[int, int]:
    """The most rows and the most keys of any."""
    return max(each.rows for each in together), max(each.keys for each in together)
