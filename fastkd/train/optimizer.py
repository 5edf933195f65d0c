"""AdamW over a run's parameters, and its state as named tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkd.config.tree import OptimizerConfig
from fastkd.train.sharding import part_like


def build_optimizer(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW; biases and norms, whose parameters are vectors, do not decay."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter's index>.<kind>` to tensor, such as `12.exp_avg`."""
    return {
        f"{index}.{kind}": tensor
        for index, tensors in optimizer.state_dict()["state"].items()
        for kind, tensor in tensors.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Takes back what `optimizer_tensors` gave, of whole parameters, as they are divided here."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, kind = name.split(".")
        if tensor.ndim:  # all but the number of steps
            tensor = part_like(tensor, parameters[int(index)])
        state.setdefault(int(index), {})[kind] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
