"""Keys and values kept between the steps of incremental decoding."""

import torch
from torch import Tensor


class KeyValues:
    """Keys and values of one attention layer, (S, heads, stored, head size) each.

    S sentences; each step stores one key and one value for every hypothesis of a sentence, next to
    each other, and nothing is ever moved: which of them are a hypothesis' own past is said by a
    mask, so hypotheses change places without a copy.
    """

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None) -> None:
        self._key = key
        self._value = value
        self._stored = 0 if key is None else key.shape[2]

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        assert self._key is not None and self._value is not None, "nothing is stored yet"
        return self._key[:, :, : self._stored], self._value[:, :, : self._stored]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (S, heads, new, head size); returns all that is stored."""
        end = self._stored + key.shape[2]
        self._key = _room(self._key, key, self._stored, end)
        self._value = _room(self._value, value, self._stored, end)
        self._key[:, :, self._stored : end] = key
        self._value[:, :, self._stored : end] = value
        self._stored = end
        return self.stored

    def keep(self, sentences: Tensor) -> None:
        """Drops all sentences but those with these indices."""
        key, value = self.stored
        self._key = key.index_select(0, sentences)
        self._value = value.index_select(0, sentences)


def _room(buffer: Tensor | None, new: Tensor, stored: int, needed: int) -> Tensor:
    """A buffer of at least `needed` places, with what was stored; doubled when it is full."""
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    sentences, heads, _, size = new.shape
    grown = new.new_empty(sentences, heads, max(2 * needed, 8 * new.shape[2]), size)
    if buffer is not None:
        grown[:, :, :stored] = buffer[:, :, :stored]
    return grown


class DecoderState:
    """What a decoder keeps between steps, for `beam` hypotheses of each of S sentences.

    layers: (self-attention, cross-attention) of each layer; cross-attention is stored once a
        sentence, not once a hypothesis
    source_mask: (S, 1, 1, Ts) True where there is a source token, or None
    length: tokens decoded so far
    """

    def __init__(
        self, layers: list[tuple[KeyValues, KeyValues]], source_mask: Tensor | None
    ) -> None:
        self.layers = layers
        self.source_mask = source_mask
        self.length = 0
        self._past: Tensor | None = None  # (S, beam, stored) True where it is the hypothesis' own

    def extend(self, sentences: int, beam: int, device: torch.device) -> Tensor | None:
        """Takes note of one more token a hypothesis; returns what each sees, None for beam 1."""
        self.length += 1
        if beam == 1:
            return None
        own = torch.eye(beam, dtype=torch.bool, device=device).expand(sentences, -1, -1)
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
