"""From a model's configuration and its tokenizers to the model."""

from typing import TYPE_CHECKING, Any, Protocol

from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Transformer

if TYPE_CHECKING:
    from fastkd.config.tree import ModelConfig


class Vocabularies(Protocol):
    """Of both sides: sizes and special ids, as `Tokenizers` have them."""

    @property
    def source(self) -> Any: ...

    @property
    def target(self) -> Any: ...


def build_model(config: "ModelConfig", tokenizers: Vocabularies) -> Transformer:
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
