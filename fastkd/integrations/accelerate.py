"""Models that Accelerate is about to divide by FSDP2."""

from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from fastkd.integrations import sharded
from fastkd.integrations.unwrapped import projection_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def divide_head(model: nn.Module, accelerator: "Accelerator") -> None:
    """Before an optimizer and `accelerator.prepare`: `sharded.divide_head` as Accelerate divides.

    Accelerate itself keeps the output projection whole from forward to backward. Nothing is done
    without FSDP2, nor where the first process alone has the weights (`cpu_ram_efficient_loading`).
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
        return
    head = projection_of(model)
    if accelerator.mixed_precision != "no" and head is not None:
        for parameter in head.parameters():
            if parameter.requires_grad:  # which Accelerate keeps in float32
                parameter.data = parameter.data.float()
    mesh = getattr(accelerator, "torch_device_mesh", None)
    if mesh is not None:
        mesh = mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    sharded.divide_head(
        model,
        mesh,
        reshard_after_forward=plugin.reshard_after_forward,
        offload_policy=plugin.cpu_offload,
        mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
    )
