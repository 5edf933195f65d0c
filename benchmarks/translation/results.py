"""The CSV of a table, one line for each run and split."""

import csv
from pathlib import Path
from typing import Any

from benchmarks.translation.plan import Plan, Trial
from fastkd import tables


class Results:
    def __init__(self, file: Path):
        self.file = file
        self.lines: list[dict[str, str]] = []
        if file.exists():
            with open(file, newline="", encoding="utf-8") as stream:
                self.lines = list(csv.DictReader(stream))

    def of(self, trial: Trial, split: str) -> dict[str, str] | None:
        """The newest line of a run with the options it has now."""
        key = (trial.name, " ".join(trial.row.set), str(trial.seed), split)
        for line in reversed(self.lines):
            if (line["method"], line["options"], line["seed"], line["split"]) == key:
                return line
        return None

    def add(self, line: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(line), lineterminator="\n")
            if not self.lines:
                writer.writeheader()
            writer.writerow(line)
        self.lines.append({key: str(value) for key, value in line.items()})


def summary(plan: Plan, results: Results, splits: tuple[str, ...]) -> list[list[str]]:
    """Cells of the table: a method's mean over its seeds; what was not run is absent."""
    cells = []
    for name, row in plan.rows.items():
        seeds = plan.seeds[:1] if row.teacher else plan.seeds
        trials = [Trial(plan, name, seed) for seed in seeds]
        line = [name]
        for split in splits:
            found = [each for trial in trials if (each := results.of(trial, split))]
            for metric in ("bleu", "chrf"):
                values = [float(each[metric]) for each in found]
                line.append(f"{sum(values) / len(values):.2f}" if values else "absent")
            line.append(str(len(found)))
        found = [each for trial in trials if (each := results.of(trial, splits[0]))]
        for key in ("parameters", "training_seconds", "sentences_per_second"):
            values = [float(each[key]) for each in found]
            line.append(f"{sum(values) / len(values):,.0f}" if values else "")
        cells.append(line)
    return cells


def heads(splits: tuple[str, ...]) -> list[str]:
    scores = [f"{split} {name}" for split in splits for name in ("BLEU", "chrF", "seeds")]
    return ["method", *scores, "parameters", "training, s", "sentences/s"]


def show(plan: Plan, results: Results, splits: tuple[str, ...]) -> None:
    tables.show([tables.Table(plan.corpus, heads(splits), summary(plan, results, splits))])


def markdown(plan: Plan, results: Results, splits: tuple[str, ...]) -> str:
    return f"{tables.markdown_table(heads(splits), summary(plan, results, splits))}\n"
