"""A decoder's layers for one token after another, with what they have seen kept.

A step has few rows, so most of its time are calls: weights are looked up once a search, and no
module is called.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.nn.attention import attend, exact
from fastkd.nn.cache import KeyValues
from fastkd.nn.layers import DecoderLayer
from fastkd.nn.layout import Layout


class DecoderState:
    """What a decoder keeps between steps, for `beam` hypotheses of each of S sentences.

    close: the norm that closes the decoder, where there is one
    length: tokens decoded so far
    """

    def __init__(
        self,
        layers: "list[LayerStep]",
        close: Callable[[Tensor], Tensor] | None,
        source: Layout,
        beam: int,
    ) -> None:
        self.layers, self.close, self.beam = layers, close, beam
        self.sentences = source.batch
        self.length = 0
        # Masks are kept as what is added to scores, as each layer of each step would make it anew.
        mask = source.key_mask
        self._source_mask = None if mask is None else self._added(mask)  # (S, 1, 1, Ts)
        # 0 for a hypothesis' own past: of all of them, (S · beam, stored), and of one step.
        self._past: Tensor | None = None
        self._own = self._added(torch.eye(beam, dtype=torch.bool, device=source.device))
        self._own_rows = self._own.repeat(self.sentences, 1)  # (S · beam, beam)

    def _added(self, mask: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=self.layers[0].source.dtype, device=mask.device)
        return torch.where(mask, zero, -torch.inf)

    def step(self, rows: Tensor) -> Tensor:
        """One more embedded token a hypothesis, (S · beam, width), to the last states."""
        self.length += 1
        visible = None  # with beam 1 a hypothesis sees all
        if self.beam > 1:
            past = [self._own_rows] if self._past is None else [self._past, self._own_rows]
            self._past = torch.cat(past, dim=1)
            visible = self._past.view(self.sentences, 1, self.beam, -1)
        for layer in self.layers:
            rows = layer(rows, visible, self._source_mask)
        return rows if self.close is None else self.close(rows)

    def reorder(self, rows: Tensor) -> None:
        """Hypothesis i of the S · beam ones continues hypothesis rows[i] from now on: (S · beam,).

        Both are of the same sentence. Nothing that is stored moves.
        """
        if self._past is not None:
            self._past = self._past.index_select(0, rows)

    def keep(self, sentences: Tensor) -> None:
        """Drops all sentences but those with these indices."""
        for layer in self.layers:
            layer.past.keep(sentences)
            layer.source.keep(sentences)
        if self._source_mask is not None:
            self._source_mask = self._source_mask.index_select(0, sentences)
        if self._past is not None:
            past = self._past.unflatten(0, (self.sentences, self.beam))
            self._past = past.index_select(0, sentences).flatten(0, 1)
        self.sentences = sentences.shape[0]
        self._own_rows = self._own.repeat(self.sentences, 1)


class LayerStep:
    """What a `DecoderLayer` makes of one more token for each of `beam` hypotheses of S sentences.

    past: keys and values of the steps before
    source: those of the source, stored once a sentence, not once a hypothesis
    """

    def __init__(self, layer: DecoderLayer, source: tuple[Tensor, Tensor], beam: int) -> None:
        own, cross, inner = layer.self_attention, layer.cross_attention, layer.feed_forward
        self.past, self.source = KeyValues(), KeyValues(torch.stack(source))
        self.beam, self.heads, self.pre = beam, own.heads, layer.pre
        self._activation = inner.activation
        self._qkv, self._own_output = _linear(own.qkv), _linear(own.output)
        self._query, self._cross_output = _linear(cross.query), _linear(cross.output)
        self._expand, self._contract = _linear(inner.expand), _linear(inner.contract)
        self._own_norm = norm_step(layer.self_attention_norm)
        self._cross_norm = norm_step(layer.cross_attention_norm)
        self._inner_norm = norm_step(layer.feed_forward_norm)

    def __call__(self, rows: Tensor, visible: Tensor | None, source_mask: Tensor | None) -> Tensor:
        """(S · beam, width) to the same.

        visible: (S, 1, beam, stored) added to scores, 0 where a hypothesis sees what is stored and
            −∞ elsewhere; None: it sees all of it
        source_mask: (S, 1, 1, Ts), the same of the source
        """
        if self.pre:
            rows = rows + self._attend_past(self._own_norm(rows), visible)
            rows = rows + self._attend_source(self._cross_norm(rows), source_mask)
            return rows + self._feed_forward(self._inner_norm(rows))
        rows = self._own_norm(rows + self._attend_past(rows, visible))
        rows = self._cross_norm(rows + self._attend_source(rows, source_mask))
        return self._inner_norm(rows + self._feed_forward(rows))

    def _attend_past(self, rows: Tensor, visible: Tensor | None) -> Tensor:
        projected = self._qkv(rows)
        parts = exact(projected).view(-1, self.beam, 3, self.heads, rows.shape[1] // self.heads)
        parts = parts.permute(2, 0, 3, 1, 4)  # (3, S, heads, beam, head size)
        mixed = attend(parts[0], *self.past.append(parts[1:]), visible)
        return self._own_output(_rows(mixed, projected))

    def _attend_source(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """The hypotheses are queries to their sentence's keys."""
        projected = self._query(rows)
        query = exact(projected).view(-1, self.beam, self.heads, rows.shape[1] // self.heads)
        mixed = attend(query.transpose(1, 2), *self.source.stored, mask)
        return self._cross_output(_rows(mixed, projected))

    def _feed_forward(self, rows: Tensor) -> Tensor:
        return self._contract(self._activation(self._expand(rows), inplace=True))


def _rows(mixed: Tensor, projected: Tensor) -> Tensor:
    """(S, beam, width) to (S · beam, width), in the type of what was projected."""
    rows = mixed.flatten(0, 1)
    return rows if rows.dtype == projected.dtype else rows.to(projected.dtype)


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = module.weight.t(), module.bias
    return lambda rows: torch.addmm(bias, rows, weight)


def norm_step(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """The norm by itself."""
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda rows: F.layer_norm(rows, shape, weight, bias, eps)
