"""Which target pieces a masked model does not see, as a function of place: no state, no order.

The choice for a sentence depends on the seed, the update and the sentence's id alone, so it is the
same however an update is cut into pieces and devices, and the number of masked pieces of a whole
update is known to each of them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastkd.decode.mask_predict import lowest

_COUNT, _PLACE, _REPLACE = range(3)  # what random numbers are drawn for
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Masking:
    """Masks for training: of L pieces floor(L · U(0, 1) + 1) at random, or all of them.

    replace: share of the pieces left unmasked that self-correction replaces, rounded down
    """

    kind: Literal["random", "full"]
    seed: int
    replace: float = 0.0

    def counts(self, ids: np.ndarray, lengths: np.ndarray, update: int) -> np.ndarray:
        """Masked pieces of sentences with `lengths` pieces (end of sentence not counted): (B,)."""
        lengths = lengths.astype(np.int64)
        if self.kind == "full":
            return lengths
        share = uniform(self.seed, update, ids, _COUNT, 1)[:, 0]
        return np.where(lengths > 0, (lengths * share + 1).astype(np.int64), 0)

    def replaced_counts(self, ids: np.ndarray, lengths: np.ndarray, update: int) -> np.ndarray:
        """Pieces that self-correction replaces, of those that are left unmasked: (B,)."""
        left = lengths - self.counts(ids, lengths, update)
        replaced: np.ndarray = np.floor(left * self.replace).astype(np.int64)
        return replaced

    def masked(self, ids: Tensor, lengths: Tensor, time: int, update: int) -> Tensor:
        """Where pieces are masked, (B, time) bool; all arguments on the CPU."""
        counts = self.counts(ids.numpy(), lengths.numpy(), update)
        pieces = torch.arange(time) < lengths[:, None]
        return self._chosen(_PLACE, ids, pieces, counts, update)

    def replaced(self, masked: Tensor, ids: Tensor, lengths: Tensor, update: int) -> Tensor:
        """Where unmasked pieces are replaced, (B, time) bool, given where they are masked."""
        counts = self.replaced_counts(ids.numpy(), lengths.numpy(), update)
        left = (torch.arange(masked.shape[1]) < lengths[:, None]) & ~masked
        return self._chosen(_REPLACE, ids, left, counts, update)

    def _chosen(
        self, stream: int, ids: Tensor, among: Tensor, counts: np.ndarray, update: int
    ) -> Tensor:
        scores = uniform(self.seed, update, ids.numpy(), stream, among.shape[1])
        return lowest(torch.from_numpy(scores), among, torch.from_numpy(counts))


def uniform(seed: int, update: int, ids: np.ndarray, stream: int, count: int) -> np.ndarray:
    """(B, count) numbers in [0, 1), float64: SplitMix64 keyed by all arguments but the last."""
    state = np.zeros(1, np.uint64)
    for part in (seed, update, stream):
        state = _mix(state ^ np.uint64(part % 2**64))
    rows = _mix(state ^ ids.astype(np.uint64))[:, None]
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(rows + steps) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014) of x + golden ratio."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
