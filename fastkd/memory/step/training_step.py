"""A training step of a configuration, on its own: models, objective, optimizer, no corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.errors import InputError
from fastkd.integrations.sharded import gathered
from fastkd.memory.step.processes import Processes
from fastkd.memory.step.workload import Update, Vocabulary
from fastkd.memory.tracker import Tracker
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.runs.folder import RunFolder
from fastkd.train.ranks import Ranks
from fastkd.train.update import Made, Piece, Updater


class TrainingStep:
    """Calling it makes one update, as the trainer makes it.

    Weights are random: how much memory a step takes does not depend on them.
    """

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        teacher: ModelConfig | None,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        """ranks: this process's place among those that share the update"""
        torch.manual_seed(config.training.seed)
        self.config = config
        self.vocabulary = vocabulary
        self.device = device
        with device:
            self.model = build_model(config.model, vocabulary)
            taught = None if teacher is None else (build_model(teacher, vocabulary), teacher)
            self.objective = Objective(config, vocabulary.pad_id, taught)
        self.objective.begin(self.model)
        self.teacher = taught[0] if taught and self.objective.teacher else None
        self.ranks = ranks or Ranks()
        processes = Processes(self.ranks.size, config.training.sharding)
        parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.buckets = processes.buckets(parameters)
        self.updater = Updater(config.training, self.model, self.objective, device, self.ranks)

    def of(self, update: Update) -> "OneUpdate":
        """What makes `update` each time it is called, of random ids."""
        parts = self.config.training.accumulation * self.ranks.size
        pieces = self.ranks.share(update.pieces(parts, self.vocabulary))
        return OneUpdate(self, update, [piece.to(self.device) for piece in pieces])

    def __call__(self, update: Update, pieces: Sequence[Batch], number: int = 1) -> Made:
        """One update, cut into `pieces`, as the one of this number."""
        counts = self.objective.counts(update.corpus, np.arange(update.sentences), number)
        numbered = [Piece.of(place, batch) for place, batch in enumerate(pieces)]
        return self.updater(number, numbered, counts, epoch=1, rate=self.updater.rate)

    def label(self, tracker: Tracker) -> None:
        """Tells `tracker` what the tensors are that outlive a step."""
        updater = self.updater
        tracker.hold(updater.parameters, "parameters")
        tracker.hold(self.model.buffers(), "parameters")
        if self.teacher is not None:
            tracker.hold([*self.teacher.parameters(), *self.teacher.buffers()], "teacher")
        tracker.watch(gathered(updater.learner))
        tracker.hold([self.buckets], "gradient buckets")
        tracker.hold((parameter.grad for parameter in updater.parameters), "gradients")
        state = (t for tensors in updater.optimizer.state.values() for t in tensors.values())
        tracker.hold((t for t in state if isinstance(t, Tensor)), "optimizer")
        if updater.average is not None:
            tracker.hold(updater.average.tensors().values(), "moving average")


@dataclass(frozen=True, eq=False)
class OneUpdate:
    """A step and what it is called with."""

    step: TrainingStep
    update: Update
    pieces: list[Batch]

    def __call__(self, number: int = 1) -> Made:
        return self.step(self.update, self.pieces, number)

    def modules(self) -> dict[str, nn.Module]:
        return self.step.updater.modules()

    def label(self, tracker: Tracker) -> None:
        """Tells `tracker` what the tensors are that outlive a step."""
        self.step.label(tracker)
        tensors = (value for piece in self.pieces for value in vars(piece).values())
        tracker.hold((value for value in tensors if isinstance(value, Tensor)), "batch")


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
