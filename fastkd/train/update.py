"""One update of a model: what training, memory profiles, predictions and benchmarks all make."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastkd.config.tree import TrainingConfig
from fastkd.data.batches import Batch
from fastkd.methods.objective import Objective
from fastkd.nn.transformer import Transformer
from fastkd.runs.device import autocast
from fastkd.terms.passes import Components, Counts
from fastkd.train.ema import MovingAverage
from fastkd.train.guard import StepGuard
from fastkd.train.learner import Learner
from fastkd.train.optimizer import build_optimizer
from fastkd.train.ranks import Ranks
from fastkd.train.sharding import whole


@dataclass(frozen=True)
class Piece:
    """A part of an update's sentences, whose gradients are added to those of the others."""

    number: int  # among the pieces of all processes
    batch: Callable[[], Batch]  # made when its turn comes
    counts: bool = True  # not where it stands in for a part without sentences

    @classmethod
    def of(cls, number: int, batch: Batch) -> "Piece":
        """One that is made already."""
        return cls(number, lambda: batch)


@dataclass(frozen=True)
class Made:
    """What an update came to."""

    components: Components  # losses by name, unweighted; `loss` and `grad_norm` too
    taken: bool  # False where a gradient or a weight was not finite: nothing has changed
    overflow: bool = False  # False where the gradient was the reason


class Updater:
    """Calling it makes an update: pieces forward and backward, clipping, optimizer, average.

    The student and what its losses learn are trained; teacher and objective stand on `device`.
    With `ranks` of several processes each makes its own pieces, and gradients are averaged.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: Transformer,
        objective: Objective,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks or Ranks()
        self.model, self.objective = model, objective
        learner = Learner(model, objective)
        self.learner = self.ranks.parallel(learner, config.sharding, device)
        self.parameters = [*model.parameters(), *objective.parameters()]
        self.optimizer = build_optimizer(config.optimizer, self.parameters)
        self.guard = StepGuard(self.optimizer, self.ranks, device)
        self.average = MovingAverage(model, config.ema) if config.ema else None

    def __call__(
        self, update: int, pieces: Sequence[Piece], counts: Counts, epoch: int, rate: float
    ) -> Made:
        """The update of this number, at learning rate `rate`."""
        self.objective.before_update(self.model)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        components: Components = {}
        for piece in pieces:
            # Random state is a function of the place, so resuming needs none of it.
            torch.manual_seed(_seed(self.config.seed, update, piece.number))
            with self._gradients_exchanged(last=piece is pieces[-1]):
                loss, values = self._forward(piece, counts, epoch)
                self.ranks.meet()
                loss.backward()
            for name, value in {"loss": loss.detach() / self.ranks.size, **values}.items():
                components[name] = components[name] + value if name in components else value
        clip = self.config.optimizer.clip or math.inf
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        components["grad_norm"] = norm / self.ranks.size  # the same in each, and summed
        if not math.isfinite(norm.item()):
            return Made(components, taken=False)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self.guard.step(norm.item()):
            return Made(components, taken=False, overflow=True)
        if self.average:
            self.average.update()
        return Made(components, taken=True)

    @property
    def rate(self) -> float:
        """The learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def sharded(self) -> bool:
        """Whether this process holds only its part of each parameter."""
        return self.ranks.size > 1 and self.config.sharding != "none"

    def modules(self) -> dict[str, nn.Module]:
        """By the names that reports use."""
        named: dict[str, nn.Module] = {"model": self.model, "objective": self.objective}
        teacher = self.objective.teacher
        return {**named, "teacher": teacher} if isinstance(teacher, nn.Module) else named

    def _forward(self, piece: Piece, counts: Counts, epoch: int) -> tuple[Tensor, Components]:
        """A piece's loss, times the number of processes that are averaged over."""
        batch = piece.batch().to(self.device)
        with autocast(self.device, self.config.precision):
            loss, components = self.learner(batch, counts, epoch)
        if not piece.counts:
            components = {name: torch.zeros_like(value) for name, value in components.items()}
        return loss * (self.ranks.size if piece.counts else 0), components

    def _gradients_exchanged(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients in the backward of their last piece.

        Where they are divided they do so in each piece's: none is ever held whole.
        """
        if last or not isinstance(self.learner, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.learner.no_sync()


def _seed(seed: int, update: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, update, piece]).generate_state(1, np.uint64)[0] >> 1)
