"""Encoder and decoder: layers and, where norms come first, the norm that closes them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from fastkd.nn.attention import Taps
from fastkd.nn.layers import DecoderLayer, EncoderLayer, layer_norm
from fastkd.nn.layout import Layout
from fastkd.nn.steps import DecoderState, LayerStep, norm_step

if TYPE_CHECKING:
    from fastkd.config.tree import ModelConfig


class _Stack(nn.Module):
    def __init__(self, layers: Iterable[nn.Module], config: "ModelConfig") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = layer_norm(config.width) if config.norm == "pre" else None

    def close(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)


class Encoder(_Stack):
    def __init__(self, config: "ModelConfig") -> None:
        super().__init__((EncoderLayer(config) for _ in range(config.encoder_layers)), config)

    def forward(self, rows: Tensor, layout: Layout, taps: Taps) -> Tensor:
        """Embedded source rows (N, width) to the last states."""
        for layer in self.layers:
            rows = layer(rows, layout, taps)
        return self.close(rows)


class Decoder(_Stack):
    def __init__(self, config: "ModelConfig", layer: type[DecoderLayer] = DecoderLayer) -> None:
        super().__init__((layer(config) for _ in range(config.decoder_layers)), config)

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
        """Embedded target rows (N, width), given the encoder's last states, to the last states."""
        for layer in self.layers:
            rows = layer(rows, layout, source_rows, source_layout, causal, self_taps, cross_taps)
        return self.close(rows)

    def start(self, source_rows: Tensor, source_layout: Layout, beam: int) -> DecoderState:
        """The state before the first step, given the encoder's last states."""
        layers = []
        for layer in cast(Iterable[DecoderLayer], self.layers):
            source = layer.cross_attention.project(source_rows, source_layout)
            layers.append(LayerStep(layer, source, beam))
        close = None if self.norm is None else norm_step(self.norm)
        return DecoderState(layers, close, source_layout, beam)
