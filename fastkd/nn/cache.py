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

    @property
    def dtype(self) -> torch.dtype:
        assert self._both is not None, "nothing is stored yet"
        return self._both.dtype

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (S, heads, stored, head size) each."""
        assert self._both is not None, "nothing is stored yet"
        key, value = self._both.narrow(3, 0, self._stored).unbind(0)
        return key, value

    def append(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values, (2, S, heads, new, head size); returns all that is stored."""
        count = both.shape[3]
        self._both = _room(self._both, both, self._stored, self._stored + count)
        self._both.narrow(3, self._stored, count).copy_(both)
        self._stored += count
        return self.stored

    def keep(self, sentences: Tensor) -> None:
        """Drops all sentences but those with these indices."""
        assert self._both is not None, "nothing is stored yet"
        self._both = self._both.narrow(3, 0, self._stored).index_select(1, sentences)


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


class DecoderState:
    """What a decoder keeps between steps, for `beam` hypotheses of each of S sentences.

    layers: (self-attention, cross-attention) of each layer; cross-attention is stored once a
        sentence, not once a hypothesis
    source_mask: (S, 1, 1, Ts) True where there is a source token, or None; kept as what is added to
        scores, 0 or −∞, as every layer of every step would make it anew
    length: tokens decoded so far
    """

    def __init__(
        self, layers: list[tuple[KeyValues, KeyValues]], source_mask: Tensor | None
    ) -> None:
        self.layers = layers
        self.source_mask = None if source_mask is None else self._added(source_mask)
        self.length = 0
        self._past: Tensor | None = None  # (S, beam, stored) added: 0 where the hypothesis' own
        self._own: Tensor | None = None  # (beam, beam) of one step

    def _added(self, mask: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=self.layers[0][1].dtype, device=mask.device)
        return torch.where(mask, zero, -torch.inf)

    def extend(self, sentences: int, beam: int, device: torch.device) -> Tensor | None:
        """Takes note of one more token a hypothesis; returns what is added to scores, or None.

        (S, 1, beam, stored), 0 for what a hypothesis sees; with beam 1 it sees all.
        """
        self.length += 1
        if beam == 1:
            return None
        if self._own is None:
            self._own = self._added(torch.eye(beam, dtype=torch.bool, device=device))
        own = self._own.expand(sentences, -1, -1)
        self._past = own if self._past is None else torch.cat([self._past, own], dim=2)
        return self._past[:, None]

    def reorder(self, parents: Tensor) -> None:
        """Hypothesis i of sentence s continues hypothesis parents[s, i] from now on: (S, beam)."""
        if self._past is not None:
            index = parents[:, :, None].expand(-1, -1, self._past.shape[2])
            self._past = self._past.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Drops all sentences but those with these indices."""
        for self_attention, cross_attention in self.layers:
            self_attention.keep(sentences)
            cross_attention.keep(sentences)
        if self.source_mask is not None:
            self.source_mask = self.source_mask.index_select(0, sentences)
        if self._past is not None:
            self._past = self._past.index_select(0, sentences)
