"""Runs beside each other, in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fastkd.compare.facts import Facts
from fastkd.compare.methods import Mean, Method, differing
from fastkd.compare.verdicts import Verdict

HEADS = ("method", "seeds", "parameters", "updates", "time", "dev loss", "dev BLEU")


def cells(method: Method) -> list[str]:
    """As strings, one for each of `HEADS`."""
    loss, bleu = (method.mean(key) for key in ("dev_loss", "dev_bleu"))
    time = Mean.of(run.seconds for run in method.runs)
    updates = {run.updates for run in method.runs}
    return [
        method.title,
        method.seeds,
        "-" if method.first.parameters is None else f"{method.first.parameters:,}",
        " to ".join(f"{each:,}" for each in sorted({min(updates), max(updates)})),
        "-" if time is None else duration(time.value),
        "-" if loss is None else loss.shown(3),
        "-" if bleu is None else bleu.shown(),
    ]


def show(methods: Sequence[Method], console: Console) -> None:
    table = Table(caption="± is half of the 95 % interval over seeds")
    for position, head in enumerate(HEADS):
        table.add_column(head, justify="left" if position < 2 else "right")
    for method in methods:
        table.add_row(*cells(method))
    console.print(table)
    settings = differing(methods)
    if settings:
        table = Table(title="what differs")
        for head in ("setting", *(method.title for method in methods)):
            table.add_column(head, overflow="fold")
        for key, values in settings.items():
            table.add_row(key, *values)
        console.print(table)


def verdict_cells(verdict: Verdict) -> list[str]:
    """As strings, one for each of `verdict_heads`."""
    half = "" if verdict.interval is None else f" ± {verdict.interval:.2f}"
    p = "-" if verdict.p is None else f"{verdict.p:.3f}"
    return [verdict.title, f"{verdict.bleu:.2f}{half}", f"{verdict.chrf:.2f}", p]


def verdict_heads(split: str, baseline: str) -> list[str]:
    return ["method", f"{split} BLEU", f"{split} chrF", f"p, against {baseline}"]


def show_verdicts(verdicts: Sequence[Verdict], split: str, console: Console) -> None:
    table = Table(caption="± and p by the paired bootstrap over sentences")
    for position, head in enumerate(verdict_heads(split, verdicts[0].title)):
        table.add_column(head, justify="left" if position < 1 else "right")
    for verdict in verdicts:
        table.add_row(*verdict_cells(verdict))
    console.print(table)


def show_runs(runs: Sequence[Facts], console: Console) -> None:
    table = Table()
    for position, head in enumerate(("run", "losses", "parameters", "updates", "time", "dev BLEU")):
        table.add_column(head, justify="left" if position < 2 else "right", overflow="fold")
    for run in runs:
        bleu = run.best("dev_bleu")
        table.add_row(
            run.name,
            ", ".join(loss.name for loss in run.config.losses),
            "-" if run.parameters is None else f"{run.parameters:,}",
            f"{run.updates:,} of {run.config.training.updates:,}",
            duration(run.seconds),
            "-" if bleu is None else f"{bleu:.2f}",
        )
    console.print(table)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
