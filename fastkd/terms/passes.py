"""What losses are computed of: one pass of the student, one of the teacher, whoever's models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from fastkd.config.schedule import Schedule
from fastkd.functional import SparseTeacher
from fastkd.taps import AttentionTap

Components = dict[str, Tensor]  # losses by name, unweighted and detached
Weighted = tuple[Tensor, Components]  # a loss to be added, and what it is made of


@dataclass(frozen=True)
class Counts:
    """Sizes of a whole update, over all its pieces and devices, that losses are divided by.

    Integers, or scalars on the device where they were counted.
    """

    sentences: Any
    source_tokens: Any  # what the encoder reads
    target_tokens: Any  # what the decoder reads
    labels: Any = None  # what is predicted; None: one for each target token
    masked: int = 0  # of a masked model's target
    replaced: int = 0  # by self-correction
    update: int = 0  # which one it is, from 1, and in which epoch: for schedules and random choices
    epoch: int = 1

    @property
    def predicted(self) -> Any:
        return self.target_tokens if self.labels is None else self.labels


def now(value: float | Schedule, counts: Counts) -> float:
    """What a loss' weight is in the update of `counts`."""
    return value.at(counts.update, counts.epoch) if isinstance(value, Schedule) else value


@dataclass(frozen=True, eq=False)
class Projection:
    """logits z = entered(states) · weightᵀ + bias; weight (V, width), bias (V,) or None.

    soft_cap: c where they become c · tanh(z / c)
    extended: what adapters make of states (*, width); None: they enter as they are
    """

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    extended: Callable[[Tensor], Tensor] | None = None

    def entered(self, states: Tensor) -> Tensor:
        return states if self.extended is None else self.extended(states)


class Taps(Protocol):
    """As `fastkd.taps.AttentionTaps`, or read when first asked for."""

    @property
    def encoder(self) -> AttentionTap | None: ...
    @property
    def decoder(self) -> AttentionTap | None: ...
    @property
    def cross(self) -> AttentionTap | None: ...


class Pass(Protocol):
    """One model on one decoder input."""

    @property
    def states(self) -> Tensor:
        """The last states, one for each of `Passes.target`: (*, width)."""

    @property
    def encoder_states(self) -> Tensor:
        """The encoder's last states, (*, width)."""

    @property
    def encoder_mask(self) -> Tensor:
        """(*,) bool: which of `encoder_states` are of real tokens."""

    @property
    def projection(self) -> Projection:
        """What makes logits of `states`."""

    @property
    def taps(self) -> Taps:
        """Queries and keys of its attention, where they were asked for."""

    def again(self, prediction: Tensor) -> Self:
        """The decoder on `prediction` in place of the target, after the model's own start.

        prediction: ids, one for each of `Passes.target`. The encoder is not rerun.
        """


@dataclass(frozen=True, eq=False)
class Passes:
    """Both models on one decoder input: the gold one, or the student's own prediction.

    target: (*,) the ids to be predicted; `ignored` where there is none
    taught: what the teacher makes of it, where there is one
    vocabulary: the ids below it are compared, where one model has more than the other
    """

    student: Pass
    taught: Pass | SparseTeacher | None
    target: Tensor
    ignored: int
    vocabulary: int | None = field(default=None, kw_only=True)

    @property
    def teacher(self) -> Pass:
        """The teacher's pass, where the teacher is a model."""
        assert self.taught is not None and not isinstance(self.taught, SparseTeacher)
        return self.taught

    def teaching(self) -> dict[str, Any]:
        """The teacher as `linear_token_distillation_loss` takes it."""
        if isinstance(self.taught, SparseTeacher):
            return {"teacher_hidden": self.taught}
        projection = self.teacher.projection
        return {
            "teacher_hidden": projection.entered(self.teacher.states),
            "teacher_weight": projection.weight,
            "teacher_bias": projection.bias,
            "teacher_soft_cap": projection.soft_cap,
            "vocabulary": self.vocabulary,
        }

    def again(self, prediction: Tensor) -> "Passes":
        """Both decoders on the student's `prediction`, (*,) ids; encoders are not rerun."""
        with torch.no_grad():
            taught = self.teacher.again(prediction)
        student = self.student.again(prediction)
        return replace(self, student=student, taught=taught)


def unused(term: nn.Module) -> Weighted:
    """A term that counts for nothing in this update: gradients of zero for what it learns."""
    return torch.stack([parameter.sum() * 0 for parameter in term.parameters()]).sum(), {}


def summed(terms: Iterable[Weighted]) -> Weighted:
    """Several terms as one."""
    (loss, components), *others = terms
    for more, parts in others:
        loss, components = loss + more, components | parts
    return loss, components
