"""Chunks of positions: which rows they hold, and how many fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastkd import watching
from fastkd.backends.tokens.torch.numerics import at_hand, rounded

Part = slice | Tensor  # of the N positions: a range, or ids (R,)

# Logits of one chunk on a CPU. Fewer fit a shared cache better, but each chunk reads and writes the
# weight's gradient once more: of half as many that costs 3 to 8 % of a call.
CHUNK = 3 * 2**20
# On other devices, where a chunk is a few dozen launches.
DEVICE_CHUNK = 2**25


@dataclass(frozen=True)
class Positions:
    """The N positions of a call and those of them that count.

    Where values can be read, the others are left out; elsewhere they are computed from zeros and
    their gradient is multiplied by 0.
    """

    count: int
    chosen: Tensor | None  # (n,) ids of the positions that count; None for all
    masked: Tensor | None  # (N,) bool, true where a position does not count
    chunk: int

    @staticmethod
    def of(counted: Tensor | None, student: Tensor, vocabulary: int) -> "Positions":
        """student: (..., size); counted: (...)"""
        count, device = student.shape[:-1].numel(), student.device
        counted = None if counted is None else counted.reshape(-1)
        chosen = masked = None
        if counted is not None and at_hand(counted):
            chosen = counted.nonzero().squeeze(-1)
        elif counted is not None:
            masked = ~counted
        rows = count if chosen is None else chosen.numel()
        largest = CHUNK if device.type == "cpu" else DEVICE_CHUNK
        largest = watching.pretended().chunk or largest
        chunks = max(-(-rows * vocabulary // largest), 1)
        return Positions(count, chosen, masked, rounded(-(-rows // chunks), device))

    @property
    def rows(self) -> int:
        """Positions that are computed."""
        return self.count if self.chosen is None else self.chosen.numel()

    def __iter__(self) -> Iterator[Part]:
        rows = self.rows
        starts: Sequence[int] = range(0, rows, max(self.chunk, 1))
        if watching.pretended().few_chunks and len(starts) > 3:
            starts = [*starts[:2], starts[-1]]
        for start in starts:
            part = slice(start, min(start + self.chunk, rows))
            yield part if self.chosen is None else self.chosen[part]

    def denominator(self) -> Tensor | int:
        """How many positions count, at least 1."""
        if self.masked is not None:
            return (~self.masked).sum().clamp(min=1)
        return max(self.rows, 1)

    def whole(self, reduction: str) -> Tensor | int:
        """What a sum of gradients is to be divided by."""
        return self.denominator() if reduction == "mean" else 1

    def share(self, reduction: str) -> tuple[float, Tensor | int]:
        """What gradients are multiplied with as they are made, and what they still are to be
        divided by: a mean's denominator is early where a look can tell it."""
        denominator = self.whole(reduction)
        return (1.0, denominator) if isinstance(denominator, Tensor) else (1 / denominator, 1)

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
        if self.masked is None:
            return None if upstream is None else upstream[part]
        counts = (~self.masked[part]).float()
        return counts if upstream is None else counts * upstream[part]
