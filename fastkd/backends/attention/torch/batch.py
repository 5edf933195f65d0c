"""The extent of a call: how many sentences, maps, queries and keys, and which of them count."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Real:
    """What counts of a sentence."""

    sentence: int
    rows: int  # queries
    keys: int


@dataclass(frozen=True)
class Batch:
    sentences: int
    queries: int
    keys: int
    student_maps: int
    teacher_maps: int
    query_lengths: Tensor | None
    key_lengths: Tensor | None
    mask: Tensor | None  # (B, Tq or 1, Tk): which cells a query may attend to, in place of lengths
    causal: bool
    include: bool  # cells of padding belong to the groups that softmaxes run over
    device: torch.device

    @property
    def cells(self) -> int:
        """Of all maps together."""
        return self.sentences * self.queries * self.keys * (self.student_maps + self.teacher_maps)

    @property
    def known(self) -> bool:
        """Whether the host may ask for lengths without waiting for a device."""
        return lengths_known(self.query_lengths) and lengths_known(self.key_lengths)

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Counted query rows and keys of each sentence, on the CPU where known."""
        device = torch.device("cpu") if self.known else self.device
        rows = torch.full((self.sentences,), self.queries, device=device)
        keys = torch.full((self.sentences,), self.keys, device=device)
        if self.query_lengths is not None and not self.include:
            rows = self.query_lengths.to(device, non_blocking=True)
        if self.key_lengths is not None:
            keys = self.key_lengths.to(device, non_blocking=True)
        return rows, keys

    def real(self) -> list[Real]:
        """The sentences with anything to compare, less work first; lengths must be known."""
        rows, keys = (each.tolist() for each in self.lengths())
        real = [Real(b, rows[b], keys[b]) for b in range(self.sentences) if rows[b] and keys[b]]
        return sorted(real, key=lambda each: (each.rows * each.keys, each.rows))

    def seen(self, rows: Tensor, keys: Tensor, start: int, stop: int) -> Tensor:
        """(sentences, stop - start): how many keys count in each row; they come first."""
        row = torch.arange(start, stop, device=rows.device)
        seen = keys[:, None].expand(-1, stop - start)
        if self.causal:
            seen = torch.minimum(seen, row + 1)
        return torch.where(row < rows[:, None], seen, 0)

    def map_counts(self) -> tuple[Tensor, Tensor]:
        """Cells of each sentence's maps that are computed, and rows that have any."""
        rows, keys = self.lengths()
        if self.mask is not None:
            cells = self.mask.expand(-1, self.queries, -1)
            cells = cells.tril() if self.causal else cells
            return cells.sum((1, 2)), cells.any(-1).sum(1)
        cells = rows * keys
        if self.causal:
            full = torch.minimum(rows, keys)  # row i sees i + 1 keys up to there, then all
            cells = full * (full + 1) // 2 + (rows - full) * keys
        return self.move(cells), self.move(torch.where(keys > 0, rows, 0))

    def move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def lengths_known(lengths: Tensor | None) -> bool:
    return lengths is None or lengths.device.type == "cpu"
