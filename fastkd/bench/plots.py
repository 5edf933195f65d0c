"""Time and memory over size, on logarithmic axes."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastkd.bench.operations import OPERATIONS
from fastkd.bench.record import Row
from fastkd.bench.section import Results, newest
from fastkd.palette import PROVIDERS
from fastkd.pictures import digest, log_ticks, shown_by, write_picture

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
_PACE = "the least work at PyTorch's own rates"  # compiled kernels may beat them


def plot_operation(results: Results, file: Path, kind: str) -> None:
    """One operation on one machine, of several shapes: forward and backward together."""
    rows = [row for _, row in results if row.direction == "both" and row.status == "ok"]
    machine, operation = results[0][0], OPERATIONS[results[0][1].operation]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for provider in (name for name in _NAMES if any(row.provider == name for row in rows)):
        own = sorted((_size(row, operation.axis), row) for row in rows if row.provider == provider)
        style = {"label": _NAMES[provider], "color": PROVIDERS[provider], "marker": "."}
        sizes = [size for size, _ in own]
        axes[0].plot(sizes, [row.median_ms for _, row in own], **style)
        axes[0].fill_between(
            sizes,
            [row.lower_ms for _, row in own],
            [row.upper_ms for _, row in own],
            color=PROVIDERS[provider],
            alpha=0.2,
        )
        known = [(size, row.peak_bytes / 2**20) for size, row in own if row.peak_bytes]
        if known:
            axes[1].plot(*zip(*known, strict=True), **style)
    bounds = sorted({(_size(row, operation.axis), row.bound_ms) for row in rows})
    axes[0].plot(*zip(*bounds, strict=True), color="black", linestyle=":", label=_PACE)
    axes[0].set(ylabel="ms, forward and backward")
    axes[1].set(ylabel="peak MiB above the inputs")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel=operation.axis)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        low, high = axis.get_ylim()
        ticks = log_ticks(low, high, least=4)
        axis.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small", title="line: median, band: quartiles", title_fontsize="small")
    figure.suptitle(f"{operation.name} in {rows[0].dtype}, {machine.where(kind)}")
    write_picture(figure, file, digest(results, PROVIDERS), 110)


def plot_all(results: Results, folder: Path, kind: str) -> list[Path]:
    """One picture for each operation that has several sizes: `<operation>-<kind>.png`."""
    found = plotted(results, folder, kind)
    for file, own in found.items():
        plot_operation(own, file, kind)
    return list(found)


def stale(results: Results, folder: Path, kind: str) -> list[Path]:
    """Those of the pictures that are not there, or show something else."""
    found = plotted(results, folder, kind)
    return [file for file, own in found.items() if shown_by(file) != digest(own, PROVIDERS)]


def plotted(results: Results, folder: Path, kind: str) -> dict[Path, Results]:
    """By picture, the results that it shows."""
    found: dict[Path, Results] = {}
    for name in dict.fromkeys(row.operation for _, row in results):
        own = newest([(machine, row) for machine, row in results if row.operation == name])
        if plottable(own):
            found[folder / f"{name}-{kind}.png"] = own
    return found


def plottable(results: Results) -> bool:
    """Whether there are several sizes to draw a curve through."""
    good = [row for _, row in results if row.status == "ok" and row.operation in OPERATIONS]
    return len({_size(row, OPERATIONS[row.operation].axis) for row in good}) > 1


def _size(row: Row, axis: str) -> int:
    return int(dict(part.split("=") for part in row.shape.split(","))[axis])
