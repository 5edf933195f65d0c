"""Keys and values kept between the steps of incremental decoding."""

import torch
from torch import Tensor


class KeyValues:
    """Keys and values of one attention layer, one buffer (2, S, heads, stored, head size).

    S sentences; each step stores one key and one value for every hypothesis of a sentence, next to
    each other, and nothing is ever moved: which of them are a hypothesis' own past is said by a
    mask, so hypotheses change places without a copy.
    """

    def __init__(self, both: Tensor | None = None) -> None:
        self._both = both
        self._stored = 0 if both is None else both.shape[3]
        self._views: tuple[Tensor, Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        assert self._both is not None, "nothing is stored yet"
        return self._both.dtype

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (S, heads, stored, head size) each."""
        if self._views is None:
            assert self._both is not None, "nothing is stored yet"
            key, value = self._both.narrow(3, 0, self._stored).unbind(0)
            self._views = key, value
        return self._views

    def append(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values, (2, S, heads, new, head size); returns all that is stored."""
        count = both.shape[3]
        self._both = _room(self._both, both, self._stored, self._stored + count)
        self._both.narrow(3, self._stored, count).copy_(both)
        self._stored += count
        self._views = None
        return self.stored

    def keep(self, sentences: Tensor) -> None:
        """Drops all sentences but those with these indices."""
        assert self._both is not None, "nothing is stored yet"
        self._both = self._both.narrow(3, 0, self._stored).index_select(1, sentences)
        self._views = None


def _room(buffer: Tensor | None, new: Tensor, stored: int, needed: int) -> Tensor:
    """A buffer of at least `needed` places, with what was stored; doubled when it is full."""
    if buffer is not None and buffer.shape[3] >= needed:
        return buffer
    shape = list(new.shape)
    shape[3] = max(2 * needed, 8 * new.shape[3])
    grown = new.new_empty(shape)
    if buffer is not None:
        grown[:, :, :, :stored] = buffer[:, :, :, :stored]
    return grown
