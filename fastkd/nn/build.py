"""From a model's configuration and its tokenizers to the model."""

from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Transformer


def build_model(config, tokenizers) -> Transformer:
    """A new model of a `ModelConfig` for the vocabularies of `Tokenizers`."""
    target = tokenizers.target
    sizes = tokenizers.source.size, target.size
    if config.kind == "cmlm":
        return CMLM(
            config,
            *sizes,
            pad_id=target.pad_id,
            bos_id=target.bos_id,
            eos_id=target.eos_id,
            mask_id=target.mask_id,
        )
    return Transformer(config, *sizes, target.pad_id)
