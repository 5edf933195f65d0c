"""One update of a Transformers student and its teacher, as Transformers' Trainer makes it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fastkd.integrations.distillation import Distillation
from fastkd.memory.tracker import Tracker
from fastkd.runs.device import autocast

MakesOptimizer = Callable[[Iterable[Parameter]], Optimizer]


class PairStep:
    """Calling it makes one update: batches forward and backward, clipping, optimizer, zeroing."""

    def __init__(
        self,
        distillation: Distillation,
        optimizer: MakesOptimizer,
        batches: list[dict[str, Tensor]],
        precision: str,
        clip: float,
    ) -> None:
        self.distillation, self.batches = distillation, batches
        self.precision, self.clip = precision, clip
        self.student = distillation.student
        own = [*self.student.parameters(), *distillation.parameters()]
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        if isinstance(self.parameters[0], FakeTensor):
            distillation.presume(batches[0])
        self.optimizer = optimizer(self.parameters)
        self.gradients: list[Tensor] = []

    def __call__(self) -> None:
        self.student.train()
        counts = self.distillation.counts(self.batches)
        for batch in self.batches:
            with autocast(batch["labels"].device, self.precision):
                loss = self.distillation(self.student, batch, counts, update=1).loss
            loss.backward()
            del loss
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def modules(self) -> dict[str, nn.Module]:
        """By the names that reports use."""
        named = {"model": self.student, "losses": self.distillation}
        teacher = self.distillation.teacher
        return named if teacher is None else {**named, "teacher": teacher}

    def label(self, tracker: Tracker) -> None:
        """Tells `tracker` what the tensors are that outlive a step."""
        tracker.hold(_tensors(self.student), "parameters")
        tracker.hold(self.distillation.parameters(), "parameters")
        if (teacher := self.distillation.teacher) is not None:
            tracker.hold(_tensors(teacher), "teacher")
        states: Iterable[dict[str, Any]] = self.optimizer.state.values()
        held = (value for state in states for value in state.values())
        tracker.hold((value for value in held if isinstance(value, Tensor)), "optimizer")
        tracker.hold((value for batch in self.batches for value in batch.values()), "batch")


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
