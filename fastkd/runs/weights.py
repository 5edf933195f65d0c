"""A model's parameters by name, each once however often it is shared."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fastkd.errors import InputError


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@torch.no_grad()
def load_weights(
    module: nn.Module, tensors: dict[str, Tensor], source: Path, partly: bool = False
) -> None:
    """Copies `tensors` into `module`'s parameters; InputError unless names, shapes, dtypes agree.

    partly: parameters that `tensors` lacks are left as they are
    """
    parameters = dict(module.named_parameters())
    if partly:
        parameters = {name: p for name, p in parameters.items() if name in tensors}
    for name in sorted(parameters.keys() ^ tensors.keys()):
        holder = "the model" if name in parameters else "the checkpoint"
        raise InputError(f"{source}: does not fit the model: only {holder} has {name}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            expected, found = tuple(parameter.shape), tuple(tensors[name].shape)
            raise InputError(f"{source}: {name}: expected shape {expected}, not {found}")
        if parameter.dtype != tensors[name].dtype:
            raise InputError(
                f"{source}: {name}: expected {parameter.dtype}, not {tensors[name].dtype}"
            )
        parameter.copy_(tensors[name])
