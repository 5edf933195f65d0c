"""Runs beside each other as one HTML page that needs no other file."""

from collections.abc import Sequence
from importlib import resources

import matplotlib
from jinja2 import Environment

from fastkd.compare.methods import Method, differing
from fastkd.compare.pictures import colour, components, curve, heads
from fastkd.compare.samples import Sample
from fastkd.compare.table import HEADS, cells, verdict_cells, verdict_heads
from fastkd.compare.verdicts import Verdict

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
) -> str:
    """The page's text; pictures lie within it.

    split: that the verdicts are on
    """
    template = resources.files("fastkd.compare").joinpath("page.html").read_text(encoding="utf-8")
    curves = {name: curve(methods, key, name) for name, key in _CURVES.items()}
    pictures = {method.title: heads(method) for method in methods}
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=" · ".join(method.title for method in methods),
            heads=HEADS,
            rows=[cells(method) for method in methods],
            colours=[matplotlib.colors.to_hex(colour(i)) for i in range(len(methods))],
            settings=differing(methods) if len(methods) > 1 else {},
            curves={name: picture for name, picture in curves.items() if picture},
            components=components(methods),
            head_pictures={name: picture for name, picture in pictures.items() if picture},
            samples=samples,
            split=split,
            verdicts=[verdict_cells(verdict) for verdict in verdicts],
            verdict_heads=verdict_heads(split, methods[0].title),
        )
    )
