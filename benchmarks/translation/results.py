"""The CSV of a table, one line for each run and split."""

import csv
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.translation.plan import Plan, Trial
from fastkd import tables
from fastkd.files import write_file

ABSENT = "absent"  # of what was not run


class Results:
    """file: what was measured; reused: other tables, whose lines count where `file` has none"""

    def __init__(self, file: Path, reused: Sequence[Path] = ()):
        self.file = file
        self._adding = threading.Lock()
        self.lines = _read(file)
        self.reused = [line for other in reused for line in _read(other)]

    @classmethod
    def of_plan(cls, plan: Plan, file: Path) -> "Results":
        return cls(file, [file.with_name(f"{name}.csv") for name in plan.reused])

    def all_of(self, trial: Trial, split: str) -> list[dict[str, str]]:
        """The lines of a run with the options it has now, oldest first: a piece each."""
        key = (trial.name, " ".join(trial.row.set), str(trial.seed), split)
        own = [line for line in self.lines if _key(line) == key]
        return own or [line for line in self.reused if _key(line) == key]

    def of(self, trial: Trial, split: str) -> dict[str, str] | None:
        """The newest of them."""
        found = self.all_of(trial, split)
        return found[-1] if found else None

    def add(self, line: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._adding:
            self.lines = _read(self.file)  # others may have added lines to it meanwhile
            known = list(dict.fromkeys(key for each in self.lines for key in each))
            self.lines.append({key: str(value) for key, value in line.items()})
            if not known or not line.keys() <= set(known):
                columns = dict.fromkeys([*known, *line])
                write_file(self.file, _csv(list(columns), self.lines, header=True).encode())
            else:
                with open(self.file, "a", encoding="utf-8") as stream:
                    stream.write(_csv(known, self.lines[-1:], header=False))


def _csv(columns: list[str], lines: Sequence[dict[str, str]], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _read(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _key(line: dict[str, str]) -> tuple[str, ...]:
    return line["method"], line["options"], line["seed"], line["split"]


def summary(plan: Plan, results: Results, splits: Sequence[str]) -> list[list[str]]:
    """Cells of the table: a method's mean over its seeds, and each seed's own score."""
    agreed, uneven = _has_agreement(results), _is_uneven(plan, results)
    cells = []
    for name, row in plan.rows.items():
        seeds = plan.seeds[:1] if row.teacher else row.seeds or plan.seeds
        trials = [Trial(plan, name, seed) for seed in seeds]
        line = [name]
        for split in splits:
            found = [each for trial in trials if (each := results.of(trial, split))]
            by_seed = {int(each["seed"]): f"{float(each['bleu']):.2f}" for each in found}
            line.append(mean(found, "bleu", ".2f") or ABSENT)
            line += [by_seed.get(seed, "") for seed in plan.seeds if len(plan.seeds) > 1]
            line.append(mean(found, "chrf", ".2f") or ABSENT)
        every = ([results.of(trial, split) for trial in trials] for split in splits)
        found = next((own for lines in every if (own := [each for each in lines if each])), [])
        line += [mean(found, "agreement", ".1f")] if agreed else []
        line += [_updates(found)] if uneven else []
        for key in ("parameters", "training_seconds", "sentences_per_second"):
            line.append(mean(found, key, ",.0f"))
        cells.append(line)
    return cells


def heads(plan: Plan, results: Results, splits: Sequence[str]) -> list[str]:
    found = ["method"]
    for split in splits:
        found.append(f"{split} BLEU")
        found += [f"seed {seed}" for seed in plan.seeds if len(plan.seeds) > 1]
        found.append(f"{split} chrF")
    found += ["teacher's top-1, %"] if _has_agreement(results) else []
    found += ["updates"] if _is_uneven(plan, results) else []
    return [*found, "parameters", "training, s", "sentences/s"]


def mean(lines: Sequence[dict[str, str]], key: str, form: str) -> str:
    """Over the lines that have such a figure; empty where none has."""
    values = [float(line[key]) for line in lines if line.get(key)]
    return format(sum(values) / len(values), form) if values else ""


def _has_agreement(results: Results) -> bool:
    return any(line.get("agreement") for line in results.lines)


def _updates(lines: Sequence[dict[str, str]]) -> str:
    """Of each seed, or one number where they are equal."""
    counts = [f"{int(line['updates']):,}" for line in lines if line.get("updates")]
    return " / ".join(counts if len(set(counts)) > 1 else counts[:1])


def _is_uneven(plan: Plan, results: Results) -> bool:
    """Whether seeds of a row have come to different updates, as pieces let them."""
    for name, row in plan.rows.items():
        trials = [Trial(plan, name, seed) for seed in row.seeds or plan.seeds]
        found = [each for trial in trials if (each := results.of(trial, "dev"))]
        if "/" in _updates(found):
            return True
    return False


def show(plan: Plan, results: Results, splits: Sequence[str]) -> None:
    heading = heads(plan, results, splits)
    tables.show([tables.Table(plan.corpus, heading, summary(plan, results, splits))])


def markdown(plan: Plan, results: Results, splits: Sequence[str]) -> str:
    heading = heads(plan, results, splits)
    return f"{tables.markdown_table(heading, summary(plan, results, splits))}\n"
