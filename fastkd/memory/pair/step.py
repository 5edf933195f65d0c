"""One update of a Transformers student and its teacher, as Transformers' Trainer makes it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.sharded import gathered
from fastkd.memory.step.processes import Processes
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
        processes: Processes,
    ) -> None:
        self.distillation, self.batches = distillation, batches
        self.precision, self.clip = precision, clip
        self.student = distillation.student
        # Once each: divided, what is learned is a part of the student.
        own = dict.fromkeys([*self.student.parameters(), *distillation.parameters()])
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        self.buckets = processes.buckets(self.parameters)
        self.processes = processes
        self.optimizer = optimizer(self.parameters)
        self.gradients: list[Tensor] = []

    def __call__(self) -> None:
        self.student.train()
        counts = self.distillation.counts(self.batches)
        for batch in self.batches:
            with autocast(batch["labels"].device, self.precision):
                loss = self.distillation(self.student, batch, counts, update=1).loss
            (loss * self.processes.number).backward()
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
        tracker.hold([self.buckets], "gradient buckets")
        for model in filter(None, (self.student, teacher)):
            tracker.watch(gathered(model))
        states: Iterable[dict[str, Any]] = self.optimizer.state.values()
        held = (value for state in states for value in state.values())
        tracker.hold((value for value in held if isinstance(value, Tensor)), "optimizer")
        tracker.hold((value for batch in self.batches for value in batch.values()), "batch")


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
