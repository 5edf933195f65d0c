"""Runs that differ in nothing but their seed, as one method."""

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastkd.compare.facts import OWN, Facts

# Student's t for 95 %, by degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def student_t(freedom: int) -> float:
    """What Student's t with so many degrees of freedom is within in 95 % of cases."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    # The normal distribution's, and the next terms of its expansion: within 0.002 from here on.
    return 1.96 + 2.372 / freedom + 2.823 / freedom**2


def shared_spread(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation over seeds, as if every method had the same, and its degrees of freedom.

    Two seeds tell next to nothing of a method's own; those of several methods together do.
    """
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    squares = sum((len(group) - 1) * statistics.variance(group) for group in several)
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


@dataclass(frozen=True)
class Mean:
    """Of a figure over seeds, with half of its 95 % interval by Student's t where there are two."""

    value: float
    half: float | None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Mean | None":
        found = [value for value in values if value is not None]
        if not found:
            return None
        if len(found) == 1:
            return cls(found[0], None)
        half = student_t(len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found))
        return cls(statistics.fmean(found), half)

    def shown(self, digits: int = 2) -> str:
        half = "" if self.half is None else f" ± {self.half:.{digits}f}"
        return f"{self.value:.{digits}f}{half}"


@dataclass(frozen=True)
class Method:
    """One configuration, run with one seed or several."""

    title: str
    runs: tuple[Facts, ...]

    @property
    def first(self) -> Facts:
        return self.runs[0]

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.config.training.seed) for run in self.runs)

    def mean(self, key: str) -> Mean | None:
        """Of a validation's figure at each run's best checkpoint."""
        return Mean.of(run.best(key) for run in self.runs)


def methods_of(runs: Sequence[Facts]) -> list[Method]:
    """In the order in which their first runs are given."""
    groups: dict[tuple[tuple[str, str], ...], list[Facts]] = {}
    for run in runs:
        shared = tuple((key, value) for key, value in run.settings.items() if key not in OWN)
        groups.setdefault(shared, []).append(run)
    firsts = [group[0].name for group in groups.values()]
    return [
        Method(title, tuple(group))
        for title, group in zip(_titles(firsts), groups.values(), strict=True)
    ]


def by_tokenizer(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """By what cut the words of dev BLEU, the methods with those of their runs.

    BLEU of other words is another figure, so that only one group's compare.
    """
    names = dict.fromkeys(run.bleu_tokenizer for method in methods for run in method.runs)
    groups: dict[str, list[Method]] = {}
    for name in filter(None, names):
        for method in methods:
            own = tuple(run for run in method.runs if run.bleu_tokenizer == name)
            if own:
                groups.setdefault(name, []).append(Method(method.title, own))
    return groups


def differing(methods: Sequence[Method]) -> dict[str, list[str]]:
    """By key, the settings that are not the same in all methods, one a method."""
    keys = dict.fromkeys(key for method in methods for key in method.first.settings)
    found = {key: [method.first.settings.get(key, "absent") for method in methods] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if key not in OWN and any(value != values[0] for value in values)
    }


def _titles(names: list[str]) -> list[str]:
    """The names without the folders that all have in common."""
    if len(names) < 2:
        return [os.path.basename(os.path.normpath(name)) for name in names]
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names])
    return [os.path.relpath(os.path.abspath(name), shared) for name in names]
