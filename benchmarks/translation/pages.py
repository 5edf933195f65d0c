"""The pages and tables that show what was measured, from the CSVs alone."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.translation.plan import Plan, Trial, read_plan
from benchmarks.translation.results import ABSENT, Results, markdown, mean
from benchmarks.translation.splits import SPLITS
from fastkd.tables import Line, markdown_table

HERE = Path(__file__).resolve().parent
PASSES = (1, 2, 4, 8)
_MASKED = {
    "cmlm": "CMLM",
    "dims": "DiMS of it",
    "cmlm-distilled": "CMLM on the teacher's translations",
    "dims-distilled": "DiMS of it",
}


def known() -> dict[str, tuple[Plan, Results]]:
    """By name: the plans of which something was measured."""
    files = sorted((HERE / "results").glob("*.csv"))
    plans = {file: read_plan(HERE / f"{file.stem}.yaml") for file in files}
    return {file.stem: (plan, Results.of_plan(plan, file)) for file, plan in plans.items()}


def splits(plan: Plan, results: Results) -> tuple[str, ...]:
    """What is shown beside dev is what any row but the teacher was scored on."""
    trials = list(plan.trials())
    return (
        "dev",
        *(
            on
            for on in SPLITS[1:]
            if any(results.of(trial, str(trial.scored(on)[0])) for trial in trials)
        ),
    )


def tables() -> dict[Path, str]:
    """The file beside each CSV."""
    found = {}
    for name, (plan, results) in known().items():
        labels = plan.labels(splits(plan, results))
        found[HERE / "results" / f"{name}.md"] = markdown(plan, results, labels)
    for file in sorted((HERE / "results" / "decided").glob("*.csv")):
        with open(file, newline="", encoding="utf-8") as stream:
            header, *lines = csv.reader(stream)
        found[file.with_suffix(".md")] = f"{markdown_table(header, lines)}\n"
    return found


def drawn() -> Iterator[tuple[Plan, Results, str, Path]]:
    """The pictures beside the tables: plan, results, split and file of each that is there."""
    for name, (plan, results) in known().items():
        for split in splits(plan, results):
            file = HERE / "results" / f"{name}-{split}.png"
            if file.exists():
                yield plan, results, split, file


def in_short(plan: Plan, results: Results, names: Sequence[str] = ()) -> str:
    """Of a README: the rows named, or all that were measured with their recipe as it is."""
    shown = [split for split in ("dev", "test") if split in splits(plan, results)]
    names = names or [name for name, row in plan.rows.items() if not row.set]
    header = ["model", "parameters"]
    for split in shown:
        header += [f"BLEU {split}", *(f"seed {seed}" for seed in plan.seeds if len(plan.seeds) > 1)]
    header += ["chrF test"] if "test" in shown else []
    lines: list[Line] = []
    for name in names:
        found = {split: _lines(plan, results, name, split) for split in shown}
        if not found["dev"]:
            continue
        cells = [name, f"{float(mean(found['dev'], 'parameters', '.0f')) / 1e6:.1f} M"]
        for split in shown:
            by_seed = {int(line["seed"]): f"{float(line['bleu']):.1f}" for line in found[split]}
            cells.append(mean(found[split], "bleu", ".1f") or ABSENT)
            cells += [by_seed.get(seed, "") for seed in plan.seeds if len(plan.seeds) > 1]
        cells += [mean(found["test"], "chrf", ".1f") or ABSENT] if "test" in shown else []
        minutes = float(mean(found["dev"], "training_seconds", ".0f")) / 60
        lines.append([*cells, f"{minutes:.0f} min"])
    return markdown_table([*header, "training, one thread"], lines)


def by_passes(text: str) -> str:
    """BLEU of masked models by the number of passes, from what `non_autoregressive.sh` wrote."""
    scored = dict(re.findall(r"^== \S+/(\S+ test --passes \d+)\nBLEU ([\d.]+)", text, re.M))
    lines: list[Line] = [
        (title, *(f"{float(scored[f'{name} test --passes {count}']):.1f}" for count in PASSES))
        for name, title in _MASKED.items()
    ]
    return markdown_table(("model", "1 pass", *map(str, PASSES[1:])), lines)


def _lines(plan: Plan, results: Results, name: str, split: str) -> list[dict[str, str]]:
    seeds = plan.seeds[:1] if plan.rows[name].teacher else plan.seeds
    trials = (Trial(plan, name, seed) for seed in seeds)
    return [found for trial in trials if (found := results.of(trial, split))]
