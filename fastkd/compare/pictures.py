"""Pictures of several methods as SVG text; a method has one colour in all of them."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastkd.compare.methods import Method
from fastkd.config.losses import A2D
from fastkd.errors import InputError
from fastkd.plots import head_alignment
from fastkd.runs.folder import RunFolder

# What a log has beside losses; the values of schedules have their names.
_NOT_LOSSES = {"step", "epoch", "lr", "grad_norm", "tokens_per_second", "time", "loss"}
_SCHEDULED = (".weight", ".rank_weight", ".iterations")


def colour(position: int) -> str:
    return f"C{position}"


def curve(methods: Sequence[Method], key: str, label: str) -> str | None:
    """A figure of the log over updates: a line a run. None where no run has it."""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    drawn = False
    for position, method in enumerate(methods):
        for number, run in enumerate(method.runs):
            points = run.curve(key)
            if points:
                drawn = True
                title = method.title if number == 0 else None
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) < 20 else None
                axis.plot(
                    steps, values, color=colour(position), label=title, linewidth=1.3, marker=marker
                )
    axis.set(xlabel="updates", ylabel=label)
    axis.grid(alpha=0.3)
    if drawn:
        axis.legend(fontsize="small")
    if drawn:
        return _svg(figure)
    plt.close(figure)
    return None


def components(methods: Sequence[Method]) -> dict[str, str]:
    """By name, a picture of each loss that the logs have."""
    names = dict.fromkeys(
        key
        for method in methods
        for record in method.first.log
        for key in record
        if key not in _NOT_LOSSES and not key.startswith("dev_") and not key.endswith(_SCHEDULED)
    )
    pictures = {name: curve(methods, name, name) for name in names}
    return {name: picture for name, picture in pictures.items() if picture}


def heads(method: Method) -> str | None:
    """What A2D's first run has learned to mix; None for other methods, or without its teacher."""
    config = method.first.config
    a2d = any(isinstance(loss, A2D) for loss in config.losses)
    if not a2d or config.teacher is None or config.teacher.run is None or not method.first.meta:
        return None
    try:
        return _svg(head_alignment(method.first.folder, RunFolder.open(config.teacher.run)))
    except InputError:
        return None  # the teacher is elsewhere by now


def _svg(figure: Any) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastkd"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue().split("?>", 1)[1].split('dtd">', 1)[-1]
