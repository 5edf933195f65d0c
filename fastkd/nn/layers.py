"""The layers of encoder and decoder, with the norm before (`pre`) or after (`post`) each part."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.nn.attention import CrossAttention, SelfAttention, Taps, initialise
from fastkd.nn.dropout import add_dropped, dropout
from fastkd.nn.layout import Layout

if TYPE_CHECKING:
    from fastkd.config.tree import ModelConfig

_ACTIVATIONS = {"relu": F.relu, "swish": F.silu}


class FeedForward(nn.Module):
    """contract(dropout(activation(expand(x))))."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.activation]
        self.dropout = config.activation_dropout
        self.expand = nn.Linear(config.width, config.ffn)
        self.contract = nn.Linear(config.ffn, config.width)
        initialise(self.expand)
        initialise(self.contract)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.expand(x), inplace=True)
        result: Tensor = self.contract(dropout(inner, self.dropout, self.training))
        return result


class Residual(nn.Module):
    """Adds to x what a part of a layer makes of it, with the layer norm that belongs to the part.

    pre: x + dropout(part(norm(x)))          post: norm(x + dropout(part(x)))
    """

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.dropout = config.dropout

    def add(self, x: Tensor, norm: nn.LayerNorm, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre:
            return add_dropped(x, part(norm(x)), self.dropout, self.training)
        result: Tensor = norm(add_dropped(x, part(x), self.dropout, self.training))
        return result


class EncoderLayer(Residual):
    """Self-attention, then feed-forward."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.attention = SelfAttention(config.width, config.heads, config.attention_dropout)
        self.attention_norm = layer_norm(config.width)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config.width)

    def forward(self, rows: Tensor, layout: Layout, taps: Taps) -> Tensor:
        """Source rows (N, width) to the same; adds its queries and keys to `taps`."""
        rows = self.add(
            rows,
            self.attention_norm,
            lambda x: self.attention(x, layout, causal=False, taps=taps),
        )
        return self.add(rows, self.feed_forward_norm, self.feed_forward)


class DecoderLayer(Residual):
    """Self-attention, attention to the encoder, then feed-forward."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.self_attention = SelfAttention(config.width, config.heads, config.attention_dropout)
        self.self_attention_norm = layer_norm(config.width)
        self.cross_attention = CrossAttention(config.width, config.heads, config.attention_dropout)
        self.cross_attention_norm = layer_norm(config.width)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config.width)

    def forward(
        self,
        rows: Tensor,
        layout: Layout,
        source_rows: Tensor,
        source_layout: Layout,
        causal: bool,
        self_taps: Taps,
        cross_taps: Taps,
    ) -> Tensor:
        """Target rows (N, width) to the same, given the encoder's rows (M, width)."""
        rows = self.attend(rows, layout, causal, self_taps)
        rows = self.add(
            rows,
            self.cross_attention_norm,
            lambda x: self.cross_attention(x, layout, source_rows, source_layout, cross_taps),
        )
        return self.add(rows, self.feed_forward_norm, self.feed_forward)

    def attend(self, rows: Tensor, layout: Layout, causal: bool, taps: Taps) -> Tensor:
        """The part of the layer in which target rows (N, width) see each other."""
        return self.add(
            rows,
            self.self_attention_norm,
            lambda x: self.self_attention(x, layout, causal, taps),
        )


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-5)
