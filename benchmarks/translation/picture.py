"""BLEU of every method with what chance leaves open: sacrebleu's paired bootstrap."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from benchmarks.translation.plan import Plan, Trial
from benchmarks.translation.results import Results
from benchmarks.translation.trial import read_translations


def bootstrap(plan: Plan, results: Results, split: str, samples: int) -> dict[str, dict]:
    """By method, its BLEU and confidence interval, and the p-value against the baseline.

    The seeds that all methods have in common are taken together as one long test set. Empty where
    there is no baseline yet, nothing to compare with it, or no seed in common.
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
    systems, references = [], []
    for name in names:
        parts = [read_translations(Trial(plan, name, seed), split) for seed in seeds]
        systems.append((name, [line for hypotheses, _ in parts for line in hypotheses]))
        references = [line for _, each in parts for line in each]
    test = PairedTest(systems, {"BLEU": BLEU()}, [references], test_type="bs", n_samples=samples)
    found = test()[1]["BLEU"]
    return {
        name: {"bleu": each.score, "mean": each.mean, "interval": each.ci, "p": each.p_value}
        for name, each in zip(names, found, strict=True)
    }


def draw(plan: Plan, results: Results, split: str, samples: int, file: Path) -> dict[str, dict]:
    """Points are runs, bars 95 % intervals; no picture where there is nothing to compare."""
    found = bootstrap(plan, results, split, samples)
    if not found:
        return found
    figure, axis = plt.subplots(figsize=(8, 0.6 * len(found) + 1.6), layout="constrained")
    for height, (name, each) in enumerate(reversed(found.items())):
        axis.errorbar(each["bleu"], height, xerr=each["interval"], fmt="o", capsize=4)
        for seed in plan.seeds:
            line = results.of(Trial(plan, name, seed), split)
            if line:
                axis.plot(float(line["bleu"]), height, marker="|", color="black", markersize=12)
    teacher = results.of(plan.teacher, split)
    if teacher:
        axis.axvline(float(teacher["bleu"]), linestyle="--", color="grey", label="teacher")
        axis.legend()
    axis.set_yticks(range(len(found)), list(reversed(found)))
    axis.set(xlabel=f"BLEU, {split}", title=plan.corpus)
    axis.grid(axis="x", alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return found
