"""An encoder-decoder Transformer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.nn.attention import TapList, Taps
from fastkd.nn.dropout import dropout
from fastkd.nn.layers import DecoderLayer
from fastkd.nn.layout import Layout
from fastkd.nn.positions import sinusoids
from fastkd.nn.stacks import Decoder, Encoder
from fastkd.nn.steps import DecoderState
from fastkd.taps import AttentionTap, AttentionTaps

if TYPE_CHECKING:
    from fastkd.config.tree import ModelConfig


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the encoder made of a batch of sources.

    rows: the last states, one row a source token as `layout` has them, (M, width)
    tap: queries and keys of its self-attention, where asked for
    """

    rows: Tensor
    layout: Layout
    tap: AttentionTap | None = None

    @cached_property
    def hidden(self) -> Tensor:
        """The last states, (B, Ts, width)."""
        return self.layout.pad(self.rows)

    def repeat(self, count: int) -> "Encoded":
        """Each sentence `count` times, one after another."""
        lengths = self.layout.lengths.repeat_interleave(count)
        layout = Layout(lengths, self.layout.time, self.layout.device, self.layout.packed)
        return Encoded(layout.rows(self.hidden.repeat_interleave(count, 0)), layout)


@dataclass(frozen=True, eq=False)
class TransformerOutput:
    """What the decoder made of a batch.

    rows: its last states, one row a target token as `layout` has them, (N, width);
        `layout.rows(targets)` brings targets (B, Tt) to the same form. On a CPU padding is not
        among them, so losses over rows do no work for it.
    taps: queries and keys of every attention layer, where asked for
    """

    rows: Tensor
    layout: Layout
    encoded: Encoded
    taps: AttentionTaps | None = None

    @cached_property
    def hidden(self) -> Tensor:
        """The last decoder states, after the final norm: (B, Tt, width)."""
        return self.layout.pad(self.rows)

    @property
    def encoder_hidden(self) -> Tensor:
        """The last encoder states, after the final norm: (B, Ts, width)."""
        return self.encoded.hidden


class Transformer(nn.Module):
    """Encoder-decoder Transformer (Vaswani et al., 2017).

    config: a `ModelConfig`, or anything with its fields
    source_size, target_size: pieces of the two vocabularies
    pad_id: the id of padding; its embedding starts as zeros
    decoder_layer: what the decoder's layers are

    Embeddings are scaled by sqrt(width), positions are sines and cosines in halves, and layer
    norms have eps 1e-5. With `norm="post"` positions and norms are those of Marian in Hugging
    Face Transformers; with `norm="pre"` those of M2M100: a last norm closes encoder and
    decoder, positions begin at pad_id + 1 and use its frequencies. (M2M100 gives a pad token no
    position, so a model with `decoder_start="pad"` fits Marian only.)

    Raises InputError where the sizes of the configuration do not fit each other.
    """

    positions: Tensor  # (max_positions, width)

    def __init__(
        self,
        config: "ModelConfig",
        source_size: int,
        target_size: int,
        pad_id: int,
        decoder_layer: type[DecoderLayer] = DecoderLayer,
    ) -> None:
        super().__init__()
        _check(config, source_size, target_size)
        self.config = config
        self.pad_id = pad_id
        self.scale = math.sqrt(config.width)
        self.source_embedding = _embedding(source_size, config.width, pad_id)
        if not config.share_embeddings:
            self.target_embedding = _embedding(target_size, config.width, pad_id)
        if not config.tie_output:
            self.output_projection = nn.Parameter(torch.empty(target_size, config.width))
            nn.init.normal_(self.output_projection, std=config.width**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(target_size)) if config.output_bias else None
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, decoder_layer)
        pre = config.norm == "pre"
        table = sinusoids(
            config.max_positions, config.width, first=pad_id + 1 if pre else 0, closed=pre
        )
        self.register_buffer("positions", table, persistent=False)
        self.output_by_column: Tensor | None = None  # where the model is laid out for decoding

    @property
    def output_weight(self) -> Tensor:
        """The output projection, (target_size, width): the target embedding where tied."""
        if self.config.tie_output:
            return self._target_embedding.weight
        return self.output_projection

    @property
    def _target_embedding(self) -> nn.Embedding:
        return self.source_embedding if self.config.share_embeddings else self.target_embedding

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        decoder_input: Tensor,
        target_lengths: Tensor,
        taps: bool = False,
    ) -> TransformerOutput:
        """The decoder's last states for `decoder_input`; logits are left to the loss.

        source: (B, Ts) ids, decoder_input: (B, Tt) ids, padded at the end
        source_lengths, target_lengths: (B,) integers on the CPU, at least 1
        taps: whether to return queries and keys of the attention layers
        """
        encoded = self.encode(source, source_lengths, taps)
        return self.decode(decoder_input, encoded, target_lengths, taps)

    def encode(self, source: Tensor, source_lengths: Tensor, taps: bool = False) -> Encoded:
        """The encoder alone."""
        layout = Layout(source_lengths, source.shape[1], source.device)
        rows = self._embed(source, self.source_embedding, layout)
        seen = TapList() if taps else None
        rows = self.encoder(rows, layout, seen)
        return Encoded(rows, layout, _tap(seen, layout, layout, causal=False))

    def decode(
        self,
        decoder_input: Tensor,
        encoded: Encoded,
        target_lengths: Tensor,
        taps: bool = False,
        causal: bool = True,
    ) -> TransformerOutput:
        """The decoder alone; `causal=False` lets each position see the whole target."""
        layout = Layout(target_lengths, decoder_input.shape[1], decoder_input.device)
        rows = self._embed(decoder_input, self._target_embedding, layout)
        own = TapList() if taps else None
        cross = TapList() if taps else None
        rows = self.decoder(rows, layout, encoded.rows, encoded.layout, causal, own, cross)
        if not taps:
            return TransformerOutput(rows, layout, encoded)
        tapped = AttentionTaps(
            encoder=encoded.tap,
            decoder=_tap(own, layout, layout, causal),
            cross=_tap(cross, layout, encoded.layout, causal=False),
        )
        return TransformerOutput(rows, layout, encoded, tapped)

    def logits(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., width) to (..., target_size); bias: another one than the model's own."""
        weight = self.output_weight if self.output_by_column is None else self.output_by_column
        return nn.functional.linear(hidden, weight, self.output_bias if bias is None else bias)

    def bias_barring(self, ids: Sequence[int]) -> Tensor:
        """The output bias with −∞ at `ids`, so that these have probability 0: (target_size,)."""
        weight, bias = self.output_weight, self.output_bias
        barring = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone()
        barring[list(ids)] = -torch.inf
        return barring

    @torch.no_grad()
    def lay_out_for_decoding(self) -> "Transformer":
        """Weights by column in memory, the same numbers: no more to be trained; returns the model.

        Products of the few rows that a step of decoding has take half the time on a CPU. The output
        projection is copied, as an embedding is read by row.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.t().contiguous().t()
        self.output_by_column = self.output_weight.detach().t().contiguous().t()
        return self

    def start(self, encoded: Encoded, beam: int) -> DecoderState:
        """The state from which decoding of the encoded sentences begins, token after token."""
        return self.decoder.start(encoded.rows, encoded.layout, beam)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """The decoder's last states for one more token a hypothesis: (S · beam,) to rows of width.

        Equals the last position of `decode` on all tokens so far; `state` is brought forward.
        """
        position = self._position_table(state.length + 1)[state.length]
        embedded = nn.functional.embedding(tokens, self._target_embedding.weight)
        return state.step(torch.add(position, embedded, alpha=self.scale))

    def _embed(self, tokens: Tensor, embedding: nn.Embedding, layout: Layout) -> Tensor:
        """Ids (B, T) to rows (N, width)."""
        positions = layout.positions(self._position_table(layout.time))
        embedded = embedding(layout.rows(tokens))
        rows = torch.add(positions, embedded, alpha=self.scale)
        return dropout(rows, self.config.dropout, self.training)

    def _position_table(self, needed: int) -> Tensor:
        if needed > self.config.max_positions:
            raise ValueError(
                f"a sequence of {needed} tokens, but max_positions is {self.config.max_positions}"
            )
        return self.positions


def _tap(layers: Taps, queries: Layout, keys: Layout, causal: bool) -> AttentionTap | None:
    if layers is None:
        return None
    return AttentionTap(
        query=[query for query, _ in layers],
        key=[key for _, key in layers],
        causal=causal,
        query_lengths=queries.lengths if queries.padded else None,
        key_lengths=keys.lengths if keys.padded else None,
    )


def _embedding(size: int, width: int, pad_id: int) -> nn.Embedding:
    embedding = nn.Embedding(size, width, padding_idx=pad_id)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    with torch.no_grad():
        embedding.weight[pad_id].zero_()
    return embedding


def _check(config: "ModelConfig", source_size: int, target_size: int) -> None:
    if config.width % config.heads:
        raise InputError(f"model.heads: expected a divisor of model.width ({config.width})")
    if config.width % 2:
        raise InputError(f"model.width: expected an even number, not {config.width}")
    if config.share_embeddings and source_size != target_size:
        raise InputError(
            "model.share_embeddings: expected one joint vocabulary, "
            f"not {source_size} source and {target_size} target pieces"
        )
