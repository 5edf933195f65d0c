"""BLEU of every method with what chance leaves open: sacrebleu's paired bootstrap."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest, Result

from benchmarks.translation.plan import Plan, Trial
from benchmarks.translation.results import Results
from benchmarks.translation.trial import has_translations, read_translations


class Chance(TypedDict):
    """A method's BLEU, the middle and half the width of its 95 % interval, and its p-value."""

    bleu: float
    mean: float | None
    interval: float | None
    p: float | None  # None: the baseline's


def bootstrap(plan: Plan, results: Results, split: str, samples: int) -> dict[str, Chance]:
    """By method, its BLEU and confidence interval, and the p-value against the baseline.

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
        return {}
    seeds = sorted(set.intersection(*(done[name] for name in names)))
    if not seeds:
        return {}
    if not all(
        has_translations(Trial(plan, name, seed), split) for name in names for seed in seeds
    ):
        return {}
    systems: list[tuple[str, Sequence[str]]] = []
    references: list[str] = []
    for name in names:
        parts = [read_translations(Trial(plan, name, seed), split) for seed in seeds]
        systems.append((name, [line for hypotheses, _ in parts for line in hypotheses]))
        references = [line for _, each in parts for line in each]
    test = PairedTest(systems, {"BLEU": BLEU()}, [references], test_type="bs", n_samples=samples)
    found = [each for each in test()[1]["BLEU"] if isinstance(each, Result)]
    return {
        name: Chance(bleu=each.score, mean=each.mean, interval=each.ci, p=each.p_value)
        for name, each in zip(names, found, strict=True)
    }


def draw(plan: Plan, results: Results, split: str, samples: int, file: Path) -> dict[str, Chance]:
    """A line a method: its mean, a tick a seed, and 95 % intervals where translations are there.

    No picture where there are not two methods.
    """
    found = bootstrap(plan, results, split, samples)
    seeds = {name: _by_seed(plan, results, name, split) for name in plan.rows}
    names = [name for name, row in plan.rows.items() if seeds[name] and not row.teacher]
    if len(names) < 2:
        return found
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(names) + 1.6), layout="constrained")
    for height, name in enumerate(reversed(names)):
        each = found.get(name)
        mean = each["bleu"] if each else sum(seeds[name]) / len(seeds[name])
        axis.errorbar(mean, height, xerr=each and each["interval"], fmt="o", capsize=4)
        axis.plot(seeds[name], [height] * len(seeds[name]), "|", color="black", markersize=12)
    teacher = results.of(plan.teacher, split)
    if teacher:
        axis.axvline(float(teacher["bleu"]), linestyle="--", color="grey", label="teacher")
        axis.legend()
    axis.set_yticks(range(len(names)), list(reversed(names)))
    bars = "; bars: 95 % of the paired bootstrap" if found else ""
    axis.set(xlabel=f"BLEU, {split} (point: mean, tick: a seed{bars})", title=plan.corpus)
    axis.grid(axis="x", alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return found


def _by_seed(plan: Plan, results: Results, name: str, split: str) -> list[float]:
    lines = (results.of(Trial(plan, name, seed), split) for seed in plan.seeds)
    return [float(line["bleu"]) for line in lines if line]
