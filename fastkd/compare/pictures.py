"""Pictures of several methods; a method has one colour in all of them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastkd.compare.kinds import kind_of
from fastkd.compare.methods import Method
from fastkd.config.losses import A2D
from fastkd.errors import InputError
from fastkd.palette import METHODS, styles
from fastkd.plots import head_alignment

# What a log has beside losses; the values of schedules have their names.
_NOT_LOSSES = {"step", "epoch", "lr", "grad_norm", "tokens_per_second", "time", "loss"}
_SCHEDULED = (".weight", ".rank_weight", ".hidden_weight", ".iterations")

BOOTSTRAP = "95 % interval, paired bootstrap over sentences"
OVER_SEEDS = "95 % interval over seeds (Student's t)"
NO_INTERVAL = "no intervals: too few seeds, and translations were not kept"
Look = tuple[str, str]  # colour and line


def looks_of(methods: Sequence[Method]) -> list[Look]:
    configs = [method.first.config for method in methods]
    teachers = [config.teacher.run for config in configs if config.teacher and config.teacher.run]
    return styles([kind_of(config, teachers) for config in configs])


def curve(methods: Sequence[Method], looks: Sequence[Look], key: str, label: str) -> str | None:
    """A figure of the log over updates: a line a run. None where no run has it."""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for method, (colour, line) in zip(methods, looks, strict=True):
        title: str | None = method.title
        for run in method.runs:
            points = run.curve(key)
            if points:
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) < 20 else None
                axis.plot(
                    *(steps, values, line), color=colour, label=title, linewidth=1.3, marker=marker
                )
                title = None
    if not axis.lines:
        plt.close(figure)
        return None
    seeds = " (a line a seed)" if any(len(method.runs) > 1 for method in methods) else ""
    axis.set(xlabel=f"updates{seeds}", ylabel=label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return svg(figure)


def components(methods: Sequence[Method], looks: Sequence[Look]) -> dict[str, str]:
    """By name, a picture of each loss that the logs have."""
    names = dict.fromkeys(
        key
        for method in methods
        for record in method.first.log
        for key in record
        if key not in _NOT_LOSSES and not key.startswith("dev_") and not key.endswith(_SCHEDULED)
    )
    pictures = {name: curve(methods, looks, name, name) for name in names}
    return {name: picture for name, picture in pictures.items() if picture}


@dataclass(frozen=True)
class Scored:
    """A method's figures of one metric, a seed each, and what chance leaves open."""

    title: str
    look: Look
    values: Sequence[float]
    half: float | None = None  # of the interval, around the mean


def scores(rows: Sequence[Scored], label: str, interval: str, teacher: float | None) -> Figure:
    """A line a method: its mean, a tick a seed, and its interval, which `interval` names."""
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.9), layout="constrained")
    for height, row in enumerate(reversed(rows)):
        mean = sum(row.values) / len(row.values)
        colour = row.look[0]
        axis.errorbar(mean, height, xerr=row.half, fmt="o", capsize=4, color=colour)
        axis.plot(row.values, [height] * len(row.values), "|", color=colour, markersize=14)
    names = [f"{row.title}, {len(row.values)} seeds" if len(row.values) > 1 else row.title
             for row in reversed(rows)]  # fmt: skip
    axis.set_yticks(range(len(rows)), names)
    axis.set(xlabel=label, ylim=(-0.6, len(rows) - 0.4))  # a tick is higher than its line
    axis.grid(axis="x", alpha=0.3)
    grey: dict[str, Any] = {"color": "#444444", "linestyle": "none"}
    keys = [
        Line2D([], [], marker="o", label="mean over seeds", **grey),
        Line2D([], [], marker="|", markersize=12, label="one seed", **grey),
    ]
    known = any(row.half is not None for row in rows)
    marker = {"marker": "_", "markersize": 14} if known else {"marker": ""}
    keys.append(Line2D([], [], label=interval if known else NO_INTERVAL, **marker, **grey))
    if teacher is not None:
        axis.axvline(teacher, linestyle="--", color=METHODS["teacher"])
        keys.append(Line2D([], [], linestyle="--", color=METHODS["teacher"], label="teacher"))
    figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize="small")
    return figure


def heads(method: Method) -> str | None:
    """What A2D's first run has learned to mix; None for other methods, or without its files."""
    a2d = any(isinstance(loss, A2D) for loss in method.first.config.losses)
    if not a2d or not method.first.meta:
        return None
    try:
        return svg(head_alignment(method.first.folder))
    except InputError:  # damaged, or a run of before whose teacher is elsewhere
        return None


def svg(figure: Any) -> str:
    """The figure's text, which needs no other file; the figure is closed."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastkd"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue().split("?>", 1)[1].split('dtd">', 1)[-1]
