"""BLEU of every method with what chance leaves open, as `fastkd compare` tells it."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.translation.plan import Plan, Trial
from benchmarks.translation.results import Results
from benchmarks.translation.trial import has_translations, read_translations
from fastkd.compare.kinds import kind_of
from fastkd.compare.methods import shared_spread, student_t
from fastkd.compare.pictures import BOOTSTRAP, Scored, scores
from fastkd.compare.verdicts import Verdict, judged
from fastkd.config.load import load_config
from fastkd.palette import styles
from fastkd.pictures import digest, shown_by, write_picture

OF_ALL_SEEDS = "95 % interval by the spread over seeds of all methods (Student's t"


def bootstrap(plan: Plan, results: Results, split: str) -> list[Verdict]:
    """Each method's scores, its confidence interval, and the p-value against the baseline.

    The seeds that all methods have in common are taken together as one long test set. Empty where
    there is no baseline yet, nothing to compare with it, no seed in common, or where translations
    are not beside the runs any more.
    """
    done = {
        name: {seed for seed in plan.seeds if results.of(Trial(plan, name, seed), split)}
        for name in plan.rows
    }
    names = [name for name, row in plan.rows.items() if done[name] and not row.teacher]
    names.sort(key=lambda name: name != plan.baseline)  # the first one is the baseline
    if not done[plan.baseline] or len(names) < 2:
        return []
    seeds = sorted(set.intersection(*(done[name] for name in names)))
    if not seeds:
        return []
    if not all(
        has_translations(Trial(plan, name, seed), split) for name in names for seed in seeds
    ):
        return []
    systems: list[tuple[str, Sequence[str]]] = []
    references: list[str] = []
    for name in names:
        parts = [read_translations(Trial(plan, name, seed), split) for seed in seeds]
        systems.append((name, [line for hypotheses, _ in parts for line in hypotheses]))
        references = [line for _, each in parts for line in each]
    return judged(systems, references)


def draw(plan: Plan, results: Results, split: str, file: Path) -> list[Verdict]:
    """A line a method: its mean, a tick a seed, and 95 % intervals, by translations or by seeds.

    No picture where there are not two methods.
    """
    found = bootstrap(plan, results, split)
    rows, interval = _rows(plan, results, split, found)
    if len(rows) < 2:
        return found
    best = _teacher(plan, results, split)
    figure = scores(rows, f"BLEU, {split}", interval, best)
    figure.suptitle(plan.corpus)
    write_picture(figure, file, digest(rows, interval, best))
    return found


def is_stale(plan: Plan, results: Results, split: str, file: Path) -> bool:
    """Whether the picture shows something else than would be drawn now."""
    rows, interval = _rows(plan, results, split, bootstrap(plan, results, split))
    return shown_by(file) != digest(rows, interval, _teacher(plan, results, split))


def _rows(
    plan: Plan, results: Results, split: str, found: Sequence[Verdict]
) -> tuple[list[Scored], str]:
    """A line a method, and what its interval is.

    Where translations are not there any more, what is known of chance is how far seeds lie apart.
    """
    halves = {verdict.title: verdict.interval for verdict in found}
    seeds = {name: _by_seed(plan, results, name, split) for name in plan.rows}
    names = [name for name, row in plan.rows.items() if seeds[name] and not row.teacher]
    interval = BOOTSTRAP
    if not found:
        spread, freedom = shared_spread([seeds[name] for name in names])
        interval = f"{OF_ALL_SEEDS}, {freedom} degrees of freedom)"
        if freedom > 1:  # of one alone it would be thirteen times the spread
            wide = student_t(freedom) * spread
            halves = {name: wide / math.sqrt(len(seeds[name])) for name in names}
    looks = styles([_kind(plan, name) for name in names])
    rows = [
        Scored(name, look, tuple(seeds[name]), halves.get(name))
        for name, look in zip(names, looks, strict=True)
    ]
    return rows, interval


def _teacher(plan: Plan, results: Results, split: str) -> float | None:
    line = results.of(plan.teacher, split)
    return float(line["bleu"]) if line else None


def _kind(plan: Plan, name: str) -> str:
    if plan.rows[name].distilled:
        return "sequence KD"
    return kind_of(load_config(Trial(plan, name, plan.seeds[0]).recipe))


def _by_seed(plan: Plan, results: Results, name: str, split: str) -> list[float]:
    lines = (results.of(Trial(plan, name, seed), split) for seed in plan.seeds)
    return [float(line["bleu"]) for line in lines if line]
