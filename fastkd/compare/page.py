"""Runs beside each other as one HTML page that needs no other file."""

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment

from fastkd.compare.memory import Steps
from fastkd.compare.methods import Method, by_tokenizer
from fastkd.compare.pictures import (
    BOOTSTRAP,
    OVER_SEEDS,
    Look,
    Scored,
    components,
    curve,
    heads,
    looks_of,
    scores,
    svg,
)
from fastkd.compare.samples import Sample
from fastkd.compare.table import of_methods, of_settings, of_verdicts
from fastkd.compare.verdicts import Verdict
from fastkd.memory.step.plots import timeline
from fastkd.memory.step.tables import step_tables

_CURVES = {
    "dev BLEU": "dev_bleu",
    "dev loss": "dev_loss",
    "training loss": "loss",
    "learning rate": "lr",
    "gradient norm": "grad_norm",
    "tokens a second": "tokens_per_second",
}


def page(
    methods: Sequence[Method],
    samples: Sequence[Sample] = (),
    verdicts: Sequence[Verdict] = (),
    split: str = "dev",
    steps: Steps | None = None,
) -> str:
    """The page's text; pictures lie within it.

    split: that the verdicts are on
    steps: of the methods' memory
    """
    template = resources.files("fastkd.compare").joinpath("page.html").read_text(encoding="utf-8")
    looks = looks_of(methods)
    curves = {name: curve(methods, looks, key, name) for name, key in _CURVES.items()}
    groups = _groups(methods, looks)
    if len(groups) > 1:
        del curves["dev BLEU"]
        apart = {f"dev BLEU, {name}": group for name, group in groups.items()}
        curves = {n: curve(*group, "dev_bleu", n) for n, group in apart.items()} | curves
    pictures = {method.title: heads(method) for method in methods}
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=" · ".join(method.title for method in methods),
            methods=of_methods(methods),
            settings=of_settings(methods),
            verdicts=of_verdicts(verdicts, split) if verdicts else None,
            colours=[colour for colour, _ in looks],
            scores=_pictured(methods, looks, verdicts, split),
            curves={name: picture for name, picture in curves.items() if picture},
            components=components(methods, looks),
            head_pictures={name: picture for name, picture in pictures.items() if picture},
            memory=step_tables("Predicted for a CPU, by what is alive at the peak", steps)
            if steps
            else (),
            timeline=svg(timeline(steps, "Memory of a training step")) if steps else None,
            samples=samples,
        )
    )


def _groups(
    methods: Sequence[Method], looks: Sequence[Look]
) -> dict[str, tuple[list[Method], list[Look]]]:
    """Methods and their looks, by what cut the words of dev BLEU."""
    own = {method.title: look for method, look in zip(methods, looks, strict=True)}
    return {
        name: (group, [own[method.title] for method in group])
        for name, group in by_tokenizer(methods).items()
    }


def _pictured(
    methods: Sequence[Method], looks: Sequence[Look], verdicts: Sequence[Verdict], split: str
) -> dict[str, str]:
    """By its caption, BLEU of all methods; of dev a picture for each way to cut words."""
    if verdicts:
        pictures = {"BLEU": _scores(methods, looks, verdicts, split)}
    else:
        groups = _groups(methods, looks)
        pictures = {
            "BLEU" if len(groups) < 2 else f"BLEU, words cut by {name}": _scores(*group, (), split)
            for name, group in groups.items()
        }
    return {name: picture for name, picture in pictures.items() if picture}


def _scores(
    methods: Sequence[Method], looks: Sequence[Look], verdicts: Sequence[Verdict], split: str
) -> str | None:
    """BLEU of every method: as translated for the verdicts, else of dev at the best checkpoints."""
    halves = {verdict.title: verdict.interval for verdict in verdicts}
    known = {verdict.title: [verdict.bleu] for verdict in verdicts}
    rows = []
    for method, look in zip(methods, looks, strict=True):
        mean = method.mean("dev_bleu")
        values = [value for run in method.runs if (value := run.best("dev_bleu")) is not None]
        half = halves.get(method.title) if verdicts else mean.half if mean else None
        values = known.get(method.title, values)
        if values:
            rows.append(Scored(method.title, look, values, half))
    if not rows:
        return None
    named = f"BLEU, {split if verdicts else 'dev'}"
    return svg(scores(rows, named, BOOTSTRAP if verdicts else OVER_SEEDS, None))
