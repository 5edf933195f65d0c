"""A call's teacher over all positions: each kind gives the rows of one chunk."""

from typing import Protocol

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.dense_teacher import DenseRows
from fastkd.backends.tokens.torch.divided import projection_of
from fastkd.backends.tokens.torch.listed_teacher import ListedRows
from fastkd.backends.tokens.torch.positions import Part, Positions
from fastkd.backends.tokens.torch.scores import Scores
from fastkd.backends.tokens.torch.scratch import Scratch
from fastkd.functional.calls import Projected, TokenOptions
from fastkd.functional.sparse import SparseTeacher


class Teacher(Protocol):
    def rows(self, positions: Positions, part: Part, scratch: Scratch) -> DenseRows | ListedRows:
        """The teacher's rows at `part` of the positions."""

    def rounds(self, chunks: int) -> int:
        """How often they are to be asked for, where this process has so many parts."""
        return chunks


def teacher_of(
    given: Tensor | Projected | SparseTeacher | None,
    options: TokenOptions,
    product: torch.dtype,
) -> Teacher | None:
    if given is None or not options.teaches:
        return None
    if isinstance(given, Projected):
        return LinearRows(given, options, product)
    if isinstance(given, SparseTeacher):
        return SparseRows(given, options)
    return LogitRows(given, options)


class LogitRows(Teacher):
    def __init__(self, logits: Tensor, options: TokenOptions) -> None:
        self.logits, self.options = flat(logits)[:, : options.vocabulary], options  # (N, n)

    def rows(self, positions: Positions, part: Part, scratch: Scratch) -> DenseRows:
        given = positions.take(self.logits, part)
        logits = scratch.take("teacher", *given.shape).copy_(given)
        return _dense(logits, self.options, scratch)


class LinearRows(Teacher):
    def __init__(self, given: Projected, options: TokenOptions, product: torch.dtype) -> None:
        self.hidden, self.options = flat(given.hidden), options  # (N, D)
        self.vocabulary = options.vocabulary or given.weight.shape[0]
        self.projection = projection_of(given.weight, given.bias, product, options.vocabulary)

    def rounds(self, chunks: int) -> int:
        return self.projection.rounds(chunks)

    def rows(self, positions: Positions, part: Part, scratch: Scratch) -> DenseRows:
        hidden = positions.take(self.hidden, part)
        logits = scratch.take("teacher", hidden.shape[0], self.vocabulary)
        low = scratch.low(hidden.shape[0])
        low = None if low is None else low[:, : self.vocabulary]
        self.projection.logits(hidden, logits, low)
        return _dense(logits, self.options, scratch)


class SparseRows(Teacher):
    def __init__(self, given: SparseTeacher, options: TokenOptions) -> None:
        self.given, self.options = given, options
        self.ids, self.log_probs = flat(given.ids), flat(given.log_probs)  # (N, K)

    def rows(self, positions: Positions, part: Part, scratch: Scratch) -> ListedRows:
        vocabulary = self.options.vocabulary
        return ListedRows(
            positions.take(self.ids, part).long(),
            positions.take(self.log_probs, part).to(scratch.inside),
            self.given.rest,
            scratch.shape[1] if vocabulary is None else vocabulary,
            self.options.teacher_temperature,
        )


def flat(values: Tensor) -> Tensor:
    """(..., size) as (N, size)."""
    return values.detach().reshape(-1, values.shape[-1])


def _dense(logits: Tensor, options: TokenOptions, scratch: Scratch) -> DenseRows:
    Scores.of_teacher(options).take(logits)
    whole = options.kd_weight and options.form == "kl" and not options.entropy_weight
    spare = scratch.take("probabilities", *logits.shape) if whole else None
    return DenseRows(logits, spare, options.teacher_temperature)
