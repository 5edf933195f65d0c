"""Runs beside each other as one HTML page that needs no other file."""

from collections.abc import Sequence
from importlib import resources

import matplotlib
from jinja2 import Environment

from fastkd.compare.methods import Method
from fastkd.compare.pictures import colour, components, curve, heads
from fastkd.compare.samples import Sample
from fastkd.compare.table import of_methods, of_settings, of_verdicts
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
            methods=of_methods(methods),
            settings=of_settings(methods),
            verdicts=of_verdicts(verdicts, split) if verdicts else None,
            colours=[matplotlib.colors.to_hex(colour(i)) for i in range(len(methods))],
            curves={name: picture for name, picture in curves.items() if picture},
            components=components(methods),
            head_pictures={name: picture for name, picture in pictures.items() if picture},
            samples=samples,
        )
    )
