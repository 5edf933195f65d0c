"""Means of loss components and the speed of training, between two logged updates."""

import time

import torch
from torch import Tensor

from fastkd.terms.passes import Counts
from fastkd.train.ranks import Ranks

_COUNTS = ("updates", "tokens", "seconds")


class Meter:
    """Sums components and tokens over the updates since the last figures, on their device."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._updates = self._tokens = 0
        self._start = self._last = time.perf_counter()

    def state(self, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What the next figures need, after a stop as without one: sums over all processes, and
        the updates, tokens and seconds that they are of."""
        seconds = time.perf_counter() - self._start
        return ranks.total(self._sums), dict(
            zip(_COUNTS, (self._updates, self._tokens, seconds), strict=True)
        )

    def go_on(self, sums: dict[str, Tensor], counts: dict[str, float], ranks: Ranks) -> None:
        """Takes back what `state` gave; of several processes, the first one holds all of it."""
        self._sums = {n: t if ranks.first else torch.zeros_like(t) for n, t in sums.items()}
        self._updates, self._tokens = int(counts[_COUNTS[0]]), int(counts[_COUNTS[1]])
        self._start -= counts[_COUNTS[2]]

    def seconds_since_last(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def add(self, components: dict[str, Tensor], counts: Counts) -> None:
        """One update's components; none where it was skipped."""
        if not components:
            return
        for name, value in components.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._updates += 1
        self._tokens += counts.target_tokens

    def figures(self, ranks: Ranks) -> dict[str, float]:
        """Mean components over all processes, and target tokens a second; starts anew."""
        sums, updates = ranks.total(self._sums), max(1, self._updates)
        means = {name: float(value) / updates for name, value in sums.items()}
        means["tokens_per_second"] = self._tokens / (time.perf_counter() - self._start)
        self.restart()
        return means
