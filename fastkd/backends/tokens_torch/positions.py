"""Chunks of positions: which rows they hold, and how many fit."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.tokens_torch.numerics import readable

Part = slice | Tensor  # of the N positions: a range, or ids (R,)

# Logits of one chunk on a CPU: a few buffers of this size stay in a shared cache, and its matrix
# products are still large enough to run near their peak.
CHUNK = 2**21
# On other devices, where a chunk is a few dozen launches.
DEVICE_CHUNK = 2**25
# Matrix products on a CPU are compiled for each shape, which takes longer than to compute them:
# chunks have a multiple of so many rows, so that their shapes come again.
ROWS = 32


@dataclass(frozen=True)
class Positions:
    """The N positions of a call and those of them that count.

    Where values can be read, the others are left out, but for a few that fill the last chunk. They,
    and elsewhere all of them, are computed from zeros and their gradient is multiplied by 0.
    """

    count: int
    chosen: Tensor | None  # (n,) ids of the positions to compute; None for all
    masked: Tensor | None  # (N,) bool, true where a position does not count
    chunk: int

    @staticmethod
    def of(
        counted: Tensor | None, count: int, vocabulary: int, device: torch.device
    ) -> "Positions":
        chosen = masked = None
        if counted is not None:
            masked = ~counted
            if readable(counted):
                chosen = counted.nonzero().squeeze(-1)
                filling = masked.nonzero().squeeze(-1)[: -chosen.numel() % ROWS]
                chosen, masked = torch.cat([chosen, filling]), masked if filling.numel() else None
        rows = count if chosen is None else chosen.numel()
        largest = CHUNK if device.type == "cpu" else DEVICE_CHUNK
        chunks = max(-(-rows * vocabulary // largest), 1)
        chunk = -(-rows // chunks)
        if chunk > ROWS:
            chunk = -(-chunk // ROWS) * ROWS
        return Positions(count, chosen, masked, chunk)

    def __iter__(self) -> Iterator[Part]:
        rows = self.count if self.chosen is None else self.chosen.numel()
        for start in range(0, rows, max(self.chunk, 1)):
            part = slice(start, min(start + self.chunk, rows))
            yield part if self.chosen is None else self.chosen[part]

    def denominator(self) -> Tensor | int:
        """How many positions count, at least 1."""
        if self.masked is not None:
            return (~self.masked).sum().clamp(min=1)
        return max(self.count if self.chosen is None else self.chosen.numel(), 1)

    def take(self, values: Tensor, part: Part) -> Tensor:
        """Rows of `values` (N, ...), with zeros where nothing counts."""
        rows = values[part]
        if self.masked is None:
            return rows
        hidden = self.masked[part]
        return rows.masked_fill(hidden.view(-1, *[1] * (rows.dim() - 1)), 0)

    def targets(self, target: Tensor | None, part: Part) -> Tensor | None:
        return None if target is None else self.take(target, part).long()

    def scale(self, upstream: Tensor | None, part: Part) -> Tensor | None:
        """What each row's gradient is still to be multiplied with, (R,); None for 1."""
        upstream = None if upstream is None else upstream[part]
        hidden = None if self.masked is None else self.masked[part]
        if hidden is None or (readable(hidden) and not hidden.any()):
            return upstream
        counts = (~hidden).float()
        return counts if upstream is None else counts * upstream
