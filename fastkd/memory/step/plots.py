"""The timeline of a step's memory as a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastkd.memory.step.report import StepMemory


def plot_timeline(columns: Sequence[tuple[str, StepMemory]], title: str, file: Path) -> None:
    """Bytes that tensors take over the births and deaths of one step, one curve a batch size."""
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    for name, memory in columns:
        moments, taken = memory.timeline
        axis.plot(moments, [count / 2**20 for count in taken], label=name, linewidth=1)
    axis.set(title=title, xlabel="tensors made and freed", ylabel="MiB", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
