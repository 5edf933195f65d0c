"""How a batch is cut so that the workspace stays within a budget and padding costs little."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastkd.functional.options import AlignmentOptions

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
    blocks: tuple[Block, ...]
    real_rows: Tensor | None = None  # (sentences,) where some of rows or keys are padding
    real_keys: Tensor | None = None

    @property
    def ragged(self) -> bool:
        return self.real_rows is not None

    @property
    def contiguous(self) -> bool:
        first, last = self.sentences[0], self.sentences[-1]
        return self.sentences == tuple(range(first, last + 1))


@dataclass(frozen=True)
class Shape:
    """The extent of a call."""

    batch: int
    queries: int
    keys: int
    student_maps: int
    teacher_maps: int


def readable(lengths: Tensor | None) -> bool:
    """Whether the host may ask for lengths without waiting for a device."""
    return lengths is None or lengths.device.type == "cpu"


class Plan:
    """The units of a call, and how many cells, rows and zeros its groups count.

    A group is what one softmax of the loss runs over: a map, or one of its query rows. With
    padding="include" a group also holds cells that are zero in both maps; these are counted
    (`zeros`) and not computed.
    """

    def __init__(
        self,
        shape: Shape,
        query_lengths: Tensor | None,
        key_lengths: Tensor | None,
        options: AlignmentOptions,
        cell_budget: int,
        sentence_cells: int,
        device: torch.device,
    ) -> None:
        """cell_budget: cells of one map that may be held at once; sentence_cells: what a row of a
        joined sentence takes besides its maps, in the same measure."""
        self.shape = shape
        self.options = options
        self.device = device
        self.budget = max(cell_budget, 1)
        self.sentence_cells = sentence_cells
        self.known = readable(query_lengths) and readable(key_lengths)
        self.query_lengths = query_lengths
        self.key_lengths = key_lengths
        self.include = options.padding == "include"
        if self.known:
            self.units = tuple(self._units_of_known_lengths())
        else:
            self.units = tuple(self._units_of_unknown_lengths())

    def _units_of_known_lengths(self) -> Iterator[Unit]:
        shape = self.shape
        rows = [shape.queries] * shape.batch
        keys = [shape.keys] * shape.batch
        if self.query_lengths is not None and not self.include:
            rows = self.query_lengths.tolist()
        if self.key_lengths is not None:
            keys = self.key_lengths.tolist()
        real = [b for b in range(shape.batch) if rows[b] and keys[b]]
        real.sort(key=lambda b: (rows[b] * keys[b], rows[b]))  # stable: equal lengths stay in order
        joined: list[int] = []
        for b in real:
            if joined and not self._fits([*joined, b], rows, keys):
                yield self._joined(joined, rows, keys)
                joined = []
            if self._cells(rows[b], keys[b]) > self.budget:
                yield self._cut(b, rows[b], keys[b])
            else:
                joined.append(b)
        if joined:
            yield self._joined(joined, rows, keys)

    def _cells(self, rows: int, keys: int) -> int:
        return rows * keys + (rows + keys) * self.sentence_cells

    def _fits(self, sentences: Sequence[int], rows: Sequence[int], keys: Sequence[int]) -> bool:
        height = max(rows[b] for b in sentences)
        width = max(keys[b] for b in sentences)
        counted = sum(rows[b] * keys[b] for b in sentences)
        computed = len(sentences) * height * width
        within = len(sentences) * self._cells(height, width) <= self.budget
        return within and computed <= WASTE * counted

    def _joined(self, sentences: list[int], rows: Sequence[int], keys: Sequence[int]) -> Unit:
        sentences = sorted(sentences)
        height = max(rows[b] for b in sentences)
        width = max(keys[b] for b in sentences)
        ragged = any(rows[b] < height or keys[b] < width for b in sentences)
        real_rows = torch.tensor([rows[b] for b in sentences])
        real_keys = torch.tensor([keys[b] for b in sentences])
        seen = None
        if ragged or self.options.causal:
            seen = self._move(self._seen(real_rows, real_keys, 0, height))
        unit = Unit(tuple(sentences), height, width, (Block(0, height, width, seen),))
        if not ragged:
            return unit
        return replace(unit, real_rows=self._move(real_rows), real_keys=self._move(real_keys))

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _cut(self, sentence: int, rows: int, keys: int) -> Unit:
        """One long sentence, in blocks of query rows."""
        blocks = []
        start = 0
        while start < rows:
            width = keys
            stop = min(rows, start + max(1, self.budget // width))
            seen = None
            if self.options.causal:
                width = min(stop, keys)
                counts = torch.tensor([rows]), torch.tensor([keys])
                seen = self._move(self._seen(*counts, start, stop))
            blocks.append(Block(start, stop, width, seen))
            start = stop
        return Unit((sentence,), rows, keys, tuple(blocks))

    def _units_of_unknown_lengths(self) -> Iterator[Unit]:
        """Every sentence at full length: on such a device the host must not ask for lengths."""
        shape = self.shape
        together = max(1, self.budget // self._cells(shape.queries, shape.keys))
        for first in range(0, shape.batch, together):
            sentences = tuple(range(first, min(shape.batch, first + together)))
            height = shape.queries if together > 1 else self.budget // shape.keys
            real_rows, real_keys = (each[first : first + together] for each in self.lengths())
            blocks = []
            for start in range(0, shape.queries, max(1, height)):
                stop = min(shape.queries, start + max(1, height))
                seen = self._seen(real_rows, real_keys, start, stop)
                blocks.append(Block(start, stop, shape.keys, seen))
            yield Unit(sentences, shape.queries, shape.keys, tuple(blocks), real_rows, real_keys)

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Counted query rows and keys of every sentence, (B,) each."""
        shape = self.shape
        device = torch.device("cpu") if self.known else self.device
        rows = torch.full((shape.batch,), shape.queries, device=device)
        keys = torch.full((shape.batch,), shape.keys, device=device)
        if self.query_lengths is not None and not self.include:
            rows = self.query_lengths.to(device, non_blocking=True)
        if self.key_lengths is not None:
            keys = self.key_lengths.to(device, non_blocking=True)
        return rows, keys

    def _seen(self, rows: Tensor, keys: Tensor, start: int, stop: int) -> Tensor:
        """(sentences, stop - start): how many keys count in each row; they come first."""
        row = torch.arange(start, stop, device=rows.device)
        seen = keys[:, None].expand(-1, stop - start)
        if self.options.causal:
            seen = torch.minimum(seen, row + 1)
        return torch.where(row < rows[:, None], seen, 0)

    def map_counts(self) -> tuple[Tensor, Tensor]:
        """Cells that are computed and rows that have any, of each sentence's maps, (B,) each."""
        rows, keys = self.lengths()
        cells = rows * keys
        if self.options.causal:
            full = torch.minimum(rows, keys)  # row i sees i + 1 keys up to there, then all
            cells = full * (full + 1) // 2 + (rows - full) * keys
        return self._move(cells), self._move(torch.where(keys > 0, rows, 0))
