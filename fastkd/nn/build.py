"""From a model's configuration and its tokenizers to the model."""

from torch import nn

from fastkd.nn.transformer import Transformer


def build_model(config, tokenizers) -> nn.Module:
    """A new model of a `ModelConfig` for the vocabularies of `Tokenizers`."""
    return Transformer(
        config, tokenizers.source.size, tokenizers.target.size, tokenizers.target.pad_id
    )
