"""Asking a model something without leaving a trace in it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within, passes are in evaluation mode and without gradient.

    Afterwards each module's mode, buffers and the random state are what they were.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    devices = {parameter.device for parameter in model.parameters()}
    model.eval()
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            # On a CPU bitsandbytes packs 4-bit weights for good in evaluation, without gradient.
            module.training = True
    try:
        with torch.no_grad(), torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
                module._buffers[name] = buffer
