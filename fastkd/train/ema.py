"""An exponential moving average of a model's parameters."""

import torch
from torch import Tensor, nn

from fastkd.nn.parameters import move_average
from fastkd.train.sharding import part_like


class MovingAverage:
    """average ← decay · average + (1 − decay) · parameters, in float32, in one fused call."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._names = [name for name, _ in model.named_parameters()]
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self._average = [parameter.float().clone() for parameter in self._parameters]

    def update(self) -> None:
        move_average(self._average, self._parameters, self.decay)

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._average, strict=True))

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, average in self.tensors().items():
            average.copy_(part_like(tensors[name], average))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the parameters; twice is as if never."""
        for average, parameter in zip(self._average, self._parameters, strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)
