"""Beam search with a key-value cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.decode.topk import largest
from fastkd.nn.transformer import Transformer

_DROP_FRACTION = 8  # finished sentences leave the batch once they are one in so many of it


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
    search = _Search(
        source.shape[0], beam, n_best, length_penalty, max_lengths, bos, eos, device=source.device
    )
    barred = torch.tensor(sorted({pad, bos, *banned} - {eos}), device=source.device)
    state = model.start(model.encode(source, source_lengths))
    while True:
        logits = model.logits(model.step(search.last_tokens, state))
        inside = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_p = logits.index_fill_(2, barred, -torch.inf).log_softmax(2, inside)  # (A, beam, V)
        end = log_p[:, :, eos].clone()
        log_p[:, :, eos] = -torch.inf
        values, ids = largest(log_p, min(beam, log_p.shape[2]))
        parents = search.advance(values, ids, end)
        if search.complete:
            return search.result()
        state.reorder(parents)
        if (kept := search.drop_finished()) is not None:
            state.keep(kept)


class _Search:
    """The hypotheses of all sentences; A of the S sentences are still in the batch."""

    def __init__(
        self,
        sentences: int,
        beam: int,
        n_best: int,
        penalty: float,
        max_lengths: Tensor,
        bos: int,
        eos: int,
        device: torch.device,
    ) -> None:
        if int(max_lengths.min()) < 1:
            raise ValueError("max_lengths must be at least 1")
        self.beam = beam
        self.penalty = penalty
        self.length = 0  # tokens of each live hypothesis, its start not counted
        self.limits = max_lengths.to(device)  # (A,)
        self.sentences = torch.arange(sentences, device=device)  # (A,) which these are
        self.done = torch.zeros(sentences, dtype=torch.bool, device=device)  # (A,)
        self.finished = torch.zeros(sentences, dtype=torch.int64, device=device)  # (A,)
        # One hypothesis at first: the others have probability 0 until candidates fill them.
        self.scores = torch.full((sentences, beam), -torch.inf, device=device)  # log p, (A, beam)
        self.scores[:, 0] = 0.0
        self.tokens = torch.full((sentences, beam, 1), bos, device=device)  # (A, beam, 1 + length)
        # The best finished ones of each sentence, in falling order; a score of −inf is none.
        self.best_scores = torch.full((sentences, n_best), -torch.inf, device=device)  # (S, N)
        self.best_lengths = torch.zeros(sentences, n_best, dtype=torch.int64, device=device)
        self.best_tokens = torch.full(
            (sentences, n_best, int(max_lengths.max())), eos, device=device
        )  # (S, N, longest)

    @property
    def last_tokens(self) -> Tensor:
        return self.tokens[:, :, -1]

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    def advance(self, values: Tensor, ids: Tensor, end: Tensor) -> Tensor:
        """One step, given log-probabilities and ids (A, beam, K) to continue, and (A, beam) to end.

        Returns which hypothesis each of the new ones continues, (A, beam).
        """
        self.scores = self.scores.to(values.dtype)
        self.best_scores = self.best_scores.to(values.dtype)
        candidates = (self.scores[:, :, None] + values).flatten(1)  # (A, beam · K)
        ended = self.scores + end
        live, chosen = candidates.topk(min(self.beam, candidates.shape[1]), dim=1)
        self.length += 1
        self._finish(ended, live)
        parents = chosen // values.shape[2]
        new = ids.flatten(1).gather(1, chosen)
        history = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.length))
        self.tokens = torch.cat([history, new[:, :, None]], dim=2)
        self.scores = live
        return parents

    def _finish(self, ended: Tensor, live: Tensor) -> None:
        """Takes in what ends now, with log-probabilities (A, beam), and what goes on beside it."""
        at_limit = self.limits == self.length
        others = torch.cat([ended, live], dim=1)
        rank = (others[:, None, :] > ended[:, :, None]).sum(2)  # (A, beam)
        accepted = ((rank < self.beam) | at_limit[:, None]) & ~self.done[:, None]
        accepted &= ended > -torch.inf
        score = (ended / self.length**self.penalty).masked_fill(~accepted, -torch.inf)
        improved = score.amax(1) > self.best_scores[self.sentences, -1]
        if bool(improved.any()):
            self._keep_best(score[improved], self.tokens[improved, :, 1:], self.sentences[improved])
        self.finished += accepted.sum(1)
        # The length at which what goes on would score highest: log p is negative.
        reach = self.limits if self.penalty >= 0 else torch.full_like(self.limits, self.length + 1)
        bound = live[:, 0] / reach.to(live.dtype) ** self.penalty
        beaten = self.best_scores[self.sentences, -1] >= bound
        self.done |= at_limit | (self.finished >= self.beam) | beaten

    def _keep_best(self, scores: Tensor, tokens: Tensor, rows: Tensor) -> None:
        """Of finished ones (R, beam), with tokens (R, beam, length), those that are among the best.

        rows: (R,) which sentences they are of. Of equal scores the earlier one comes first.
        """
        wanted, length = self.best_scores.shape[1], self.length - 1
        pool = torch.cat([self.best_scores[rows], scores], dim=1)  # (R, N + beam)
        order = pool.argsort(dim=1, descending=True, stable=True)[:, :wanted]  # (R, N)
        new = order - wanted  # below 0: one that was there
        old = order.clamp(max=wanted - 1)
        lengths = self.best_lengths[rows].gather(1, old).masked_fill(new >= 0, length)
        kept = self.best_tokens[rows[:, None], old]  # (R, N, longest)
        places = torch.arange(len(rows), device=rows.device)[:, None]
        kept[:, :, :length] = torch.where(
            (new >= 0)[:, :, None], tokens[places, new.clamp(min=0)], kept[:, :, :length]
        )
        self.best_scores[rows] = pool.gather(1, order)
        self.best_lengths[rows] = lengths
        self.best_tokens[rows] = kept

    def drop_finished(self) -> Tensor | None:
        """Drops sentences that are done, when they are many; the indices of those that stay."""
        if int(self.done.sum()) * _DROP_FRACTION < self.done.shape[0]:
            return None
        kept = (~self.done).nonzero().squeeze(1)
        for name in ("limits", "sentences", "done", "finished", "scores", "tokens"):
            setattr(self, name, getattr(self, name).index_select(0, kept))
        return kept

    def result(self) -> Hypotheses:
        tokens, lengths = self.best_tokens.tolist(), self.best_lengths.tolist()
        lists = [
            [
                Hypothesis(row[:length], score)
                for row, length, score in zip(*sentence, strict=True)
                if score > -math.inf
            ]
            for sentence in zip(tokens, lengths, self.best_scores.tolist(), strict=True)
        ]
        # Where no end had any probability, an empty one stands for it.
        return Hypotheses([found or [Hypothesis([], -math.inf)] for found in lists])
