"""Runs beside each other as tables."""

from collections.abc import Sequence

from fastkd.compare.facts import Facts
from fastkd.compare.methods import Mean, Method, differing
from fastkd.compare.tested import Tested
from fastkd.compare.verdicts import Verdict
from fastkd.tables import Table, duration


def of_methods(methods: Sequence[Method]) -> Table:
    tested = Tested.of(methods, "test")
    header = ["method", "seeds", "parameters", "updates", "time", "dev loss", "dev BLEU"]
    header += ["test BLEU", "test chrF"] if tested.scored else []
    remarks = ["best checkpoints; ±: half of the 95 % interval over seeds (Student's t)"]
    remarks.append(tested.remark)
    return Table("methods", header, [_method(method, tested) for method in methods], remarks)


def _method(method: Method, tested: Tested) -> list[str]:
    loss, bleu = (method.mean(key) for key in ("dev_loss", "dev_bleu"))
    tests = [tested.mean(method, key) for key in ("bleu", "chrf")] if tested.scored else []
    time = Mean.of(run.seconds for run in method.runs)
    updates = {run.updates for run in method.runs}
    return [
        method.title,
        method.seeds,
        _number(method.first.parameters),
        " to ".join(f"{each:,}" for each in sorted({min(updates), max(updates)})),
        "-" if time is None else duration(time.value),
        "-" if loss is None else loss.shown(3),
        "-" if bleu is None else bleu.shown(),
        *("-" if mean is None else mean.shown() for mean in tests),
    ]


def of_settings(methods: Sequence[Method]) -> Table:
    """Those that are not the same in all methods."""
    lines = [[key, *values] for key, values in differing(methods).items()]
    return Table("settings that differ", ["setting", *(m.title for m in methods)], lines)


def of_verdicts(verdicts: Sequence[Verdict], split: str) -> Table:
    against = f"p, against {verdicts[0].title}"
    remark = (
        "±: half of the 95 % interval; p: how likely so large a difference is by chance; paired "
        "bootstrap over sentences, 1,000 draws"
    )
    lines = [_verdict(verdict) for verdict in verdicts]
    header = ["method", f"{split} BLEU", f"{split} chrF", against]
    return Table(f"by translating {split}", header, lines, [remark])


def _verdict(verdict: Verdict) -> list[str]:
    half = "" if verdict.interval is None else f" ± {verdict.interval:.2f}"
    p = "-" if verdict.p is None else f"{verdict.p:.3f}"
    return [verdict.title, f"{verdict.bleu:.2f}{half}", f"{verdict.chrf:.2f}", p]


def of_runs(runs: Sequence[Facts]) -> Table:
    header = ("run", "losses", "parameters", "updates", "time", "dev BLEU")
    return Table("runs", header, [_run(run) for run in runs])


def _run(run: Facts) -> list[str]:
    bleu = run.best("dev_bleu")
    return [
        run.name,
        ", ".join(loss.name for loss in run.config.losses),
        _number(run.parameters),
        f"{run.updates:,} of {run.config.training.updates:,}",
        duration(run.seconds),
        "-" if bleu is None else f"{bleu:.2f}",
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
