"""Queries and keys of a model's attention layers, as models hand them to losses."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionTap:
    """Attention of one kind: one query and one key per layer, first layer first.

    query: per layer (B, heads, Tq, head size)
    key: per layer (B, key heads, Tk, head size); key heads divides heads (grouped-query)
    scale: what scores are multiplied by; None stands for 1/sqrt(head size)
    causal: whether query i sees the keys 0..i only
    query_lengths, key_lengths: (B,) integers, padding at the end; None where there is none
    """

    query: Sequence[Tensor]
    key: Sequence[Tensor]
    scale: float | None = None
    causal: bool = False
    query_lengths: Tensor | None = None
    key_lengths: Tensor | None = None

    @property
    def maps(self) -> int:
        """Number of attention maps: layers times heads."""
        return sum(query.shape[1] for query in self.query)


@dataclass(frozen=True)
class AttentionTaps:
    """The three kinds of attention of an encoder-decoder; None where a model has no such kind."""

    encoder: AttentionTap | None = None
    decoder: AttentionTap | None = None
    cross: AttentionTap | None = None


class Tapped(ABC):
    """The taps of a model that computes, read as they stand now."""

    @property
    def encoder(self) -> AttentionTap | None:
        return self._tap("encoder")

    @property
    def decoder(self) -> AttentionTap | None:
        return self._tap("decoder")

    @property
    def cross(self) -> AttentionTap | None:
        return self._tap("cross")

    @property
    def taps(self) -> AttentionTaps:
        """The three kinds, to be kept."""
        return AttentionTaps(self.encoder, self.decoder, self.cross)

    @abstractmethod
    def _tap(self, kind: str) -> AttentionTap | None: ...
