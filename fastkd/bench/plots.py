"""Time and memory over size, on logarithmic axes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator

from fastkd.bench.operations import OPERATIONS
from fastkd.bench.record import Machine, Row
from fastkd.bench.section import newest
from fastkd.pictures import write_picture

_NAMES = {
    "reference": "the definition in PyTorch",
    "compile": "torch.compile of it",
    "plain": "plain PyTorch",
    "torch": "fastkd, torch",
    "torch-uncompiled": "fastkd without a C++ compiler",
    "triton": "fastkd, triton",
    "liger": "Liger-Kernel",
    "cce": "Apple CCE",
    "pytorch": "F.linear_cross_entropy",
    "pytorch-chunked": "the same, chunked",
}
_FLOOR = "at the rates of PyTorch's products and exponentials"  # compiled kernels may beat them
_COLOURS = dict(
    zip(_NAMES, ("C7", "C1", "C3", "C0", "C9", "C2", "C4", "C5", "C6", "C8"), strict=True)
)


def plot_operation(results: Sequence[tuple[Machine, Row]], file: Path, kind: str) -> None:
    """One operation on one machine, of several shapes: forward and backward together."""
    rows = [row for _, row in results if row.direction == "both" and row.status == "ok"]
    machine, operation = results[0][0], OPERATIONS[results[0][1].operation]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for provider in (name for name in _NAMES if any(row.provider == name for row in rows)):
        own = sorted((_size(row, operation.axis), row) for row in rows if row.provider == provider)
        style = {"label": _NAMES[provider], "color": _COLOURS[provider], "marker": "."}
        sizes = [size for size, _ in own]
        axes[0].plot(sizes, [row.median_ms for _, row in own], **style)
        axes[0].fill_between(
            sizes,
            [row.lower_ms for _, row in own],
            [row.upper_ms for _, row in own],
            color=_COLOURS[provider],
            alpha=0.2,
        )
        known = [(size, row.peak_bytes / 2**20) for size, row in own if row.peak_bytes]
        if known:
            axes[1].plot(*zip(*known, strict=True), **style)
    bounds = sorted({(_size(row, operation.axis), row.bound_ms) for row in rows})
    axes[0].plot(*zip(*bounds, strict=True), color="black", linestyle=":", label=_FLOOR)
    axes[0].set(ylabel="ms, forward and backward")
    axes[1].set(ylabel="peak MiB above the inputs")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel=operation.axis)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # some, within a decade too
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{operation.name} in {rows[0].dtype}, {machine.where(kind)}")
    write_picture(figure, file, dpi=110, metadata={"Software": None})


def plot_all(results: Sequence[tuple[Machine, Row]], folder: Path, kind: str) -> list[Path]:
    """One picture for each operation that has several sizes: `<operation>-<kind>.png`."""
    files = []
    for name in dict.fromkeys(row.operation for _, row in results):
        own = newest([(machine, row) for machine, row in results if row.operation == name])
        if plottable(own):
            files.append(folder / f"{name}-{kind}.png")
            plot_operation(own, files[-1], kind)
    return files


def plottable(results: Sequence[tuple[Machine, Row]]) -> bool:
    """Whether there are several sizes to draw a curve through."""
    good = [row for _, row in results if row.status == "ok" and row.operation in OPERATIONS]
    return len({_size(row, OPERATIONS[row.operation].axis) for row in good}) > 1


def _size(row: Row, axis: str) -> int:
    return int(dict(part.split("=") for part in row.shape.split(","))[axis])
