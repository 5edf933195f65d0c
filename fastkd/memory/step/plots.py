"""The timeline of a step's memory as a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fastkd.memory.step.report import StepMemory
from fastkd.palette import PHASES
from fastkd.pictures import write_picture


def plot_timeline(columns: Sequence[tuple[str, StepMemory]], title: str, file: Path) -> None:
    """Bytes that tensors take over the births and deaths of one step, one panel a batch size."""
    write_picture(timeline(columns, title), file)


def timeline(columns: Sequence[tuple[str, StepMemory]], title: str) -> Figure:
    height = 1 + 3 * len(columns)
    figure, axes = plt.subplots(
        len(columns), 1, figsize=(9, height), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (name, memory) in zip(axes[:, 0], columns, strict=True):
        moments, taken = memory.timeline
        axis.plot(moments, [count / 2**20 for count in taken], color="black", linewidth=1)
        _mark_phases(axis, memory.phases, moments[-1])
        axis.set(title=f"{title}, {name}", ylabel="MiB", ylim=(0, None), xlim=(0, moments[-1]))
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("tensors made and freed")
    shades = [Patch(color=shade, alpha=0.2, label=phase) for phase, shade in PHASES.items()]
    figure.legend(handles=shades, loc="outside lower center", ncols=len(shades))
    return figure


def _mark_phases(axis: Axes, phases: Sequence[tuple[int, str]], end: int) -> None:
    ends = [moment for moment, _ in phases[1:]] + [end]
    for (begin, phase), stop in zip(phases, ends, strict=True):
        axis.axvspan(begin, stop, color=PHASES[phase], alpha=0.2, linewidth=0)
