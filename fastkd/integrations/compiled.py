"""`torch_compile=True` of a Trainer: layers are compiled, what is around them is not."""

from collections.abc import Iterator
from typing import Any

from torch import nn


def compile_layers(model: nn.Module, **options: Any) -> int:
    """Compiles each layer of a model's stacks in place, and tells how many there are.

    The losses take states and queries by hooks at the encoder and at the output projection, which
    stay outside; what is compiled for one layer serves all that are like it.

    options: of `torch.compile`
    """
    layers = list(_layers(model))
    for layer in layers:
        layer.compile(**options)
    return len(layers)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len({type(layer) for layer in child}) == 1:
            yield from child
        else:
            yield from _layers(child)
