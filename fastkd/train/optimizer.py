"""AdamW over a run's parameters, and its state as named tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkd.config.tree import OptimizerConfig


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


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str
) -> None:
    """Takes back what `optimizer_tensors` gave, from the names that start with `prefix`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, kind = name.removeprefix(prefix).split(".")
            state.setdefault(int(index), {})[kind] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
