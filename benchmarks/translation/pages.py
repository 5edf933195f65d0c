"""The pages and tables that show what was measured, from the CSVs alone."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.translation.plan import Plan, Trial, read_plan
from benchmarks.translation.results import Results, markdown
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
    return {file.stem: (read_plan(HERE / f"{file.stem}.yaml"), Results(file)) for file in files}


def splits(plan: Plan, results: Results) -> tuple[str, ...]:
    """The test set is shown where the row that others are compared with was scored on it."""
    scored = results.of(Trial(plan, plan.baseline, plan.seeds[0]), "test")
    return ("dev", "test") if scored else ("dev",)


def tables() -> dict[Path, str]:
    """The file beside each CSV."""
    return {
        HERE / "results" / f"{name}.md": markdown(plan, results, splits(plan, results))
        for name, (plan, results) in known().items()
    }


def drawn() -> Iterator[tuple[Plan, Results, str, Path]]:
    """The pictures beside the tables: plan, results, split and file of each that is there."""
    for name, (plan, results) in known().items():
        split = splits(plan, results)[-1]
        file = HERE / "results" / f"{name}-{split}.png"
        if file.exists():
            yield plan, results, split, file


def in_short(plan: Plan, results: Results, names: Sequence[str] = ()) -> str:
    """Of a README: the rows named, or all that were measured with their recipe as it is."""
    shown = splits(plan, results)
    scores = ["BLEU dev", *(["BLEU test", "chrF test"] if "test" in shown else [])]
    header = ("model", "parameters", "seeds", *scores, "training, one thread")
    lines: list[Line] = []
    for name, row in plan.rows.items():
        if name not in names if names else row.set:
            continue
        found = _lines(plan, results, name, "dev")
        if not found:
            continue
        cells = [_mean(found, "bleu", ".1f")]
        if "test" in shown:
            tested = _lines(plan, results, name, "test")
            cells += [_mean(tested, "bleu", ".1f"), _mean(tested, "chrf", ".1f")]
        minutes = f"{_average(found, 'training_seconds') / 60:.0f} min"
        millions = f"{_average(found, 'parameters') / 1e6:.1f} M"
        lines.append((name, millions, str(len(found)), *cells, minutes))
    return markdown_table(header, lines)


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


def _average(found: Sequence[dict[str, str]], key: str) -> float:
    return sum(float(each[key]) for each in found) / len(found)


def _mean(found: Sequence[dict[str, str]], key: str, form: str) -> str:
    return format(_average(found, key), form) if found else "absent"
