"""Runs beside each other as tables."""

from collections.abc import Sequence

from fastkd.compare.facts import Facts
from fastkd.compare.methods import Mean, Method, by_tokenizer, differing
from fastkd.compare.tested import Tested
from fastkd.compare.verdicts import Verdict
from fastkd.tables import Table, duration

_UNLIKE = "dev BLEU: by the tokenizers in brackets; those of different ones do not compare"


def of_methods(methods: Sequence[Method]) -> Table:
    tested = Tested.of(methods, "test")
    tokenizers = by_tokenizer(methods)
    header = ["method", "seeds", "parameters", "updates", "time", "dev loss", "dev BLEU"]
    header += ["test BLEU", "test chrF"] if tested.scored else []
    remarks = ["best checkpoints; ±: half of the 95 % interval over seeds (Student's t)"]
    if len(tokenizers) > 1:
        remarks.append(_UNLIKE)
    remarks.append(tested.remark)
    lines = [_method(method, tested, len(tokenizers) > 1) for method in methods]
    return Table("methods", header, lines, remarks)


def _method(method: Method, tested: Tested, unlike: bool) -> list[str]:
    loss = method.mean("dev_loss")
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
        _dev_bleu(method, unlike),
        *("-" if mean is None else mean.shown() for mean in tests),
    ]


def _dev_bleu(method: Method, unlike: bool) -> str:
    """With its tokenizer where not all have the same."""
    shown = [
        f"{mean.shown()}{f' ({name})' * unlike}"
        for name, own in by_tokenizer([method]).items()
        if (mean := own[0].mean("dev_bleu"))
    ]
    return ", ".join(shown) or "-"


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
    unlike = len({run.bleu_tokenizer for run in runs} - {None}) > 1
    remarks = [_UNLIKE] if unlike else []
    return Table("runs", header, [_run(run, unlike) for run in runs], remarks)


def _run(run: Facts, unlike: bool) -> list[str]:
    return [
        run.name,
        ", ".join(loss.name for loss in run.config.losses),
        _number(run.parameters),
        f"{run.updates:,} of {run.config.training.updates:,}",
        duration(run.seconds),
        _dev_bleu(Method(run.name, (run,)), unlike),
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
