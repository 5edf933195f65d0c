"""The models: an encoder-decoder Transformer whose attention can be tapped."""

from fastkd.nn.parameters import count_parameters
from fastkd.nn.transformer import Encoded, Transformer, TransformerOutput

__all__ = ["Encoded", "Transformer", "TransformerOutput", "count_parameters"]
