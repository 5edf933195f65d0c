"""Beam search with a key-value cache.

The model and the choice of candidates are work for its device. Which hypotheses these make, what
is finished and what may still win is little: the host does it, waiting for the device once a step.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastkd.decode.topk import largest
from fastkd.nn.transformer import Transformer

_DROP_FRACTION = 8  # finished sentences leave the batch once they are one in so many of it

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


class Hypothesis(NamedTuple):
    """A translation: its ids without start and end, and its score."""

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class Hypotheses:
    """The hypotheses of each sentence, best first; of every sentence at least one."""

    lists: list[list[Hypothesis]]

    @property
    def tokens(self) -> list[list[int]]:
        """Of the best of each sentence."""
        return [found[0].tokens for found in self.lists]

    @property
    def scores(self) -> list[float]:
        """Of the best of each sentence."""
        return [found[0].score for found in self.lists]


@torch.inference_mode()
def beam_search(
    model: Transformer,
    source: Tensor,
    source_lengths: Tensor,
    *,
    bos: int,
    eos: int,
    pad: int,
    beam: int,
    length_penalty: float,
    max_lengths: Tensor,
    banned: Sequence[int] = (),
    n_best: int = 1,
) -> Hypotheses:
    """The hypotheses with the highest score = log p(y | x) / |y| ** length_penalty that are found.

    source: (S, Ts) ids, padded at the end; source_lengths: (S,) integers on the CPU
    bos: the id that decoding starts from
    max_lengths: (S,) integers on the CPU, at least 1: tokens that a hypothesis may have, its end
        included; one that reaches it is ended there, whatever that costs
    banned: ids that are never chosen, beside `pad` and `bos`; p(y | x) is that of the model without
        all these, whose probability the others share, as CTranslate2 has it
    n_best: hypotheses wanted of a sentence, at most `beam`; fewer where no more are finished

    |y| counts the end token. At each step every hypothesis is continued by every token. Of all
    these candidates, those that end and are among the `beam` most probable are finished, and the
    `beam` most probable of the others go on. A sentence is done with `beam` finished hypotheses,
    or before that where none that goes on can still beat the `n_best` finished ones, which never
    changes the result: a log-probability only falls, so what goes on scores at most
    log p(so far) / n ** length_penalty with the most favourable length n it may still reach.
    With beam 1 this is greedy search. Other sentences of the batch change nothing.

    The model should be in evaluation mode. It is called inside whatever autocast is active.
    """
    if not 1 <= n_best <= beam:
        raise ValueError(f"n_best must be from 1 to {beam}, the beam, not {n_best}")
    device = source.device
    bias = model.bias_barring(sorted({pad, bos, *banned} - {eos}))
    size = bias.shape[0]
    search = _Search(max_lengths.numpy(), size, beam, n_best, length_penalty, bos, eos)
    state = model.start(model.encode(source, source_lengths), beam)
    while True:
        logits = model.logits(model.step(_on(device, search.last_tokens), state), bias)
        log_p = logits.log_softmax(1, torch.promote_types(logits.dtype, torch.float32))
        log_p.add_(_on(device, search.scores)[:, None])  # (A · beam, V), of all tokens so far
        # Each hypothesis has one candidate that ends, so this many have `beam` that go on.
        values, places = largest(log_p.view(-1, beam * size), min(2 * beam, beam * size))
        ends = _off(log_p[:, eos]) if search.at_a_limit else None
        rows = search.advance(_off(values), _off(places), ends)
        if search.complete:
            return search.result()
        state.reorder(_on(device, rows))
        if (kept := search.drop_finished()) is not None:
            state.keep(_on(device, kept))


def _on(device: torch.device, array: npt.NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def _off(tensor: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = (tensor if tensor.device.type == "cpu" else tensor.cpu()).numpy()
    return found


class _Finished(NamedTuple):
    """A hypothesis that ended: its score, its length with the end, and which it continued."""

    score: float
    length: int
    parent: int


class _Step(NamedTuple):
    """What the hypotheses of A sentences were continued by."""

    rows: Integers  # (S,) where each sentence's hypotheses are among the A
    tokens: Integers  # (A, beam)
    parents: Integers  # (A, beam) which hypothesis of the step before each continues


class _Search:
    """The hypotheses of all S sentences; A of them are still in the batch."""

    def __init__(
        self,
        max_lengths: Integers,
        size: int,
        beam: int,
        n_best: int,
        penalty: float,
        bos: int,
        eos: int,
    ) -> None:
        if int(max_lengths.min()) < 1:
            raise ValueError("max_lengths must be at least 1")
        sentences = len(max_lengths)
        self.size, self.beam, self.n_best, self.penalty, self.eos = size, beam, n_best, penalty, eos
        self.length = 0  # tokens of each live hypothesis, its start not counted
        self.limits = max_lengths  # (A,)
        self.sentences = np.arange(sentences)  # (A,) which these are
        self.rows = np.arange(sentences)  # (S,) the other way round
        self.done = np.zeros(sentences, bool)  # (A,)
        self.finished = np.zeros(sentences, np.int64)  # (A,) hypotheses
        self.worst = np.full(sentences, -np.inf)  # (A,) score of the last of `n_best` finished ones
        # Of each live hypothesis (A · beam,): log p and last token. One at first: the others have
        # probability 0 until candidates fill them.
        self.scores: Floats = np.full((sentences, beam), -np.inf, np.float32)
        self.scores[:, 0] = 0.0
        self.scores = self.scores.reshape(-1)
        self.last_tokens = np.full(sentences * beam, bos)
        self.steps: list[_Step] = []
        self.best: list[list[_Finished]] = [[] for _ in range(sentences)]  # in falling order

    @property
    def at_a_limit(self) -> bool:
        """Whether the next step is the last one of a sentence."""
        return self.length + 1 >= int(self.limits.min())

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    def advance(self, values: Floats, places: Integers, ends: Floats | None) -> Integers:
        """One step, given log p of the best candidates (A, K), in falling order, and their places.

        places: (A, K) hypothesis · size + token
        ends: (A · beam,) log p of each hypothesis ended now; needed where one is at its limit

        Returns which of the A · beam hypotheses each of the new ones continues, (A · beam,).
        """
        self.length += 1
        parents, tokens = np.divmod(places, self.size)
        ended = tokens == self.eos
        row = np.arange(len(values))[:, None]
        if ended.any():
            live = np.argsort(ended, axis=1, kind="stable")[:, : self.beam]  # what goes on first
            chosen: Any = (row, live)
        else:
            chosen = (slice(None), slice(self.beam))
        self._finish(values, parents, ended, values[chosen][:, 0], ends)
        step = _Step(self.rows, tokens[chosen], parents[chosen])
        self.steps.append(step)
        self.scores, self.last_tokens = values[chosen].reshape(-1), step.tokens.reshape(-1)
        return (row * self.beam + step.parents).reshape(-1)

    def _finish(
        self, values: Floats, parents: Integers, ended: Flags, live: Floats, ends: Floats | None
    ) -> None:
        """Takes in what ends now; live: (A,) log p of the best that goes on."""
        at_limit = self.limits == self.length
        among_best = values >= values[:, self.beam - 1, None]
        accepted = ended & among_best & (values > -np.inf) & ~(self.done | at_limit)[:, None]
        self._accept(accepted, values, parents)
        if ends is not None:
            ends = ends.reshape(-1, self.beam)
            every = (ends > -np.inf) & (at_limit & ~self.done)[:, None]
            self._accept(every, ends, np.broadcast_to(np.arange(self.beam), ends.shape))
        # The length at which what goes on would score highest: log p is negative.
        reach = self.limits if self.penalty >= 0 else np.full_like(self.limits, self.length + 1)
        beaten = self.worst >= live / reach.astype(np.float64) ** self.penalty
        self.done |= at_limit | (self.finished >= self.beam) | beaten

    def _accept(self, accepted: Flags, values: Floats, parents: Integers) -> None:
        """Those of (A, K) hypotheses, with log p and parents, that are finished."""
        rows = np.nonzero(accepted)[0].tolist()
        found = zip(rows, values[accepted].tolist(), parents[accepted].tolist(), strict=True)
        for row, value, parent in found:
            best = self.best[self.sentences[row]]
            new = _Finished(value / self.length**self.penalty, self.length, parent)
            bisect.insort(best, new, key=lambda one: -one.score)  # of equal ones the earlier first
            del best[self.n_best :]
            self.finished[row] += 1
            if len(best) == self.n_best:
                self.worst[row] = best[-1].score

    def drop_finished(self) -> Integers | None:
        """Drops sentences that are done, when they are many; the indices of those that stay."""
        count = len(self.done)
        if int(self.done.sum()) * _DROP_FRACTION < count:
            return None
        kept = np.flatnonzero(~self.done)
        for name in ("limits", "sentences", "done", "finished", "worst"):
            setattr(self, name, getattr(self, name)[kept])
        for name in ("scores", "last_tokens"):
            setattr(self, name, getattr(self, name).reshape(count, -1)[kept].reshape(-1))
        self.rows = self.rows.copy()  # as steps hold the old one
        self.rows[self.sentences] = np.arange(len(kept))
        return kept

    def result(self) -> Hypotheses:
        # Where no end had any probability, an empty one stands for it.
        nothing = [Hypothesis([], -math.inf)]
        return Hypotheses(
            [
                [Hypothesis(self._tokens(sentence, one), one.score) for one in found] or nothing
                for sentence, found in enumerate(self.best)
            ]
        )

    def _tokens(self, sentence: int, found: _Finished) -> list[int]:
        """Those of a finished hypothesis, from its last one back."""
        tokens, place = [], found.parent
        for step in reversed(self.steps[: found.length - 1]):
            row = step.rows[sentence]
            tokens.append(int(step.tokens[row, place]))
            place = step.parents[row, place]
        return tokens[::-1]
