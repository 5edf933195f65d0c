"""Whether a model fits this machine, told before it is built."""

from dataclasses import replace

import psutil
import torch

from fastkd.config.tree import ModelConfig
from fastkd.data.tokenizer import Tokenizers
from fastkd.errors import InputError
from fastkd.nn.build import build_model

# The weights, their gradients and Adam's two averages.
TRAINED = 4


def check_room(config: ModelConfig, tokenizers: Tokenizers, name: str, copies: int = 1) -> None:
    """Raises InputError, naming the key `name`, where `copies` of the weights exceed the memory."""
    needed, there = copies * weight_bytes(config, tokenizers), psutil.virtual_memory().total
    if needed > there:
        raise InputError(
            f"{name}: expected a model that fits the {there / 2**30:,.0f} GiB of this machine, not"
            f" one that takes {needed / 2**30:,.0f} GiB in {copies} copies of its weights"
        )


def weight_bytes(config: ModelConfig, tokenizers: Tokenizers) -> int:
    """Of parameters and buffers; as these are linear in the numbers of layers, so few are built."""
    few = _built_bytes(replace(config, encoder_layers=1, decoder_layers=1), tokenizers)
    encoder = _built_bytes(replace(config, encoder_layers=2, decoder_layers=1), tokenizers) - few
    decoder = _built_bytes(replace(config, encoder_layers=1, decoder_layers=2), tokenizers) - few
    return few + (config.encoder_layers - 1) * encoder + (config.decoder_layers - 1) * decoder


def _built_bytes(config: ModelConfig, tokenizers: Tokenizers) -> int:
    with torch.device("meta"):
        model = build_model(config, tokenizers)
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
