"""A training step of a configuration, on its own: models, objective, optimizer, no corpus."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.errors import InputError
from fastkd.memory.tracker import Tracker
from fastkd.memory.workload import Update, Vocabulary
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.runs.device import autocast
from fastkd.runs.folder import RunFolder
from fastkd.train.ema import MovingAverage
from fastkd.train.optimizer import build_optimizer


class TrainingStep:
    """Calling it does one update: pieces forward and backward, clipping, optimizer, average.

    Weights are random: how much memory a step takes does not depend on them.
    """

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        teacher: ModelConfig | None,
        device: torch.device,
    ) -> None:
        torch.manual_seed(config.training.seed)
        self.config = config
        self.device = device
        with device:
            self.model = build_model(config.model, vocabulary)
            taught = None if teacher is None else (build_model(teacher, vocabulary), teacher)
            self.objective = Objective(config, vocabulary.pad_id, taught)
        self.objective.begin(self.model)
        self.teacher = taught[0] if taught and self.objective.teacher else None
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.optimizer = build_optimizer(config.training.optimizer, self.parameters)
        decay = config.training.ema
        self.average = MovingAverage(self.model, decay) if decay else None

    def __call__(self, update: Update, pieces: Sequence[Batch]) -> Tensor:
        """One update, cut into `pieces`; its loss."""
        counts = self.objective.counts(update.corpus, np.arange(update.sentences), update=1)
        self.objective.before_update(self.model)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = None
        for piece in pieces:
            with autocast(self.device, self.config.training.precision):
                loss, _ = self.objective(self.model, piece.to(self.device), counts, epoch=1)
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        torch.nn.utils.clip_grad_norm_(
            self.parameters, self.config.training.optimizer.clip or math.inf
        )
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        assert total is not None, "an update holds at least one sentence"
        return total

    def modules(self) -> dict[str, nn.Module]:
        """By the names that reports use."""
        named = {"model": self.model, "objective": self.objective}
        return named if self.teacher is None else {**named, "teacher": self.teacher}

    def label(self, tracker: Tracker) -> None:
        """Tells `tracker` what the tensors are that outlive a step."""
        tracker.hold(self.parameters, "parameters")
        tracker.hold(self.model.buffers(), "parameters")
        if self.teacher is not None:
            tracker.hold([*self.teacher.parameters(), *self.teacher.buffers()], "teacher")
        tracker.hold((parameter.grad for parameter in self.parameters), "gradients")
        state = (t for tensors in self.optimizer.state.values() for t in tensors.values())
        tracker.hold((t for t in state if isinstance(t, Tensor)), "optimizer")
        if self.average is not None:
            tracker.hold(self.average.tensors().values(), "moving average")


def teacher_config(config: Config) -> ModelConfig | None:
    """The teacher's model as its run folder describes it; None where the config names none."""
    if config.teacher is None:
        return None
    if config.teacher.run is None:
        raise InputError(
            "teacher.cache: the memory of a step is known for a teacher that runs; expected "
            "teacher.run, or the teacher's config: --teacher CONFIG"
        )
    try:
        return RunFolder.open(config.teacher.run).config.model
    except InputError as error:
        raise InputError(
            f"teacher.run: {error}; train the teacher first, or name its config: --teacher CONFIG"
        ) from None
