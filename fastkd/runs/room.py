"""Whether a model fits this machine, told before it is built."""

import contextlib
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from fastkd.config.tree import ModelConfig
from fastkd.data.tokenizer import Tokenizers
from fastkd.errors import InputError
from fastkd.nn.build import build_model

# The weights, their gradients and Adam's two averages.
TRAINED = 4
# Of a container, where a process that takes more is killed.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def check_room(
    config: ModelConfig,
    tokenizers: Tokenizers,
    name: str,
    copies: float = 1,
    device: torch.device | str = "cpu",
) -> None:
    """Raises InputError, naming the key `name`, where `copies` of the weights exceed the memory."""
    needed, there = copies * weight_bytes(config, tokenizers), _free(torch.device(device))
    if needed > there:
        raise InputError(
            f"{name}: expected a model that fits the {there / 2**30:,.1f} GiB of memory that are"
            f" free, not one that takes {needed / 2**30:,.1f} GiB for {copies:g} copies of its"
            " weights (gradients and what the optimizer keeps included)"
        )


def _free(device: torch.device) -> int:
    """Bytes that a process may still take there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free: int = psutil.virtual_memory().available
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit
            free = min(free, int(limit.read_text()))
    return free


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
