"""Pictures of runs: learning curves and learned head alignments."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastkd.compare.heads import heads_of, moments
from fastkd.compare.kinds import kind_of
from fastkd.config.losses import A2D
from fastkd.modules.attention import KINDS
from fastkd.palette import styles
from fastkd.pictures import write_picture
from fastkd.runs.folder import OBJECTIVE, RunFolder
from fastkd.terms.alignment import mix_of
from fastkd.train.log import read_log


def plot_learning_curves(runs: Mapping[str, RunFolder], file: Path) -> None:
    """Dev loss and dev BLEU over updates, one curve a run."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    configs = [run.config for run in runs.values()]
    teachers = [config.teacher.run for config in configs if config.teacher and config.teacher.run]
    looks = styles([kind_of(config, teachers) for config in configs])
    for axis, key, name in zip(axes, ("dev_loss", "dev_bleu"), ("loss", "BLEU"), strict=True):
        for (title, run), (colour, line) in zip(runs.items(), looks, strict=True):
            points = [(r["step"], r[key]) for r in read_log(run.log_file) if key in r]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, line, color=colour, marker=".", label=title)
        axis.set(xlabel="updates", ylabel=f"dev {name}")
        axis.grid(alpha=0.3)
    axes[1].legend()
    write_picture(figure, file)


def plot_head_alignment(run: RunFolder, file: Path) -> None:
    """`head_alignment` in a file."""
    write_picture(head_alignment(run), file)


def head_alignment(run: RunFolder) -> Figure:
    """|W| of each kind of attention: how much each student head is taken for each teacher head.

    For normalization "mixture" the rows are the mixture's weights, softmax(W).
    """
    term = next(loss for loss in run.config.losses if isinstance(loss, A2D))
    tensors = run.read_weights("last", OBJECTIVE).tensors
    learned = {
        name.split(".")[-2]: mix_of(tensor, term.normalization)
        for name, tensor in tensors.items()
        if name.startswith("alignment.") and name.endswith(".weight")
    }
    weights = {kind: learned[kind] for kind in KINDS if kind in learned}
    theirs, ours = heads_of(run, weights)
    figure, axes = plt.subplots(
        1, len(weights), figsize=(4 * len(weights) + 1, 5), layout="constrained", squeeze=False
    )
    for axis, (kind, weight) in zip(axes[0], weights.items(), strict=True):
        _heat_map(axis, kind, weight, ours, theirs)
        figure.colorbar(axis.images[0], ax=axis, shrink=0.7)
    return figure


def mixes_over_training(
    mixes: Mapping[int, Mapping[str, Tensor]], student_heads: int, teacher_heads: int
) -> Figure:
    """A row a kind of attention, a column a moment: what the log of an A2D run tells.

    mixes: by update; the first, the last and some between them are shown, all by one scale a kind
    """
    shown = moments(mixes)
    kinds = [kind for kind in KINDS if kind in mixes[shown[-1]]]
    figure, axes = plt.subplots(
        *(len(kinds), len(shown)),
        figsize=(2.6 * len(shown) + 1.5, 2.8 * len(kinds)),
        layout="constrained",
        squeeze=False,
        sharex="row",
        sharey="row",
    )
    for line, kind in zip(axes, kinds, strict=True):
        highest = max(float(mixes[update][kind].max()) for update in shown)
        for axis, update in zip(line, shown, strict=True):
            title = f"{kind}, update {update:,}"
            _heat_map(axis, title, mixes[update][kind], student_heads, teacher_heads, highest)
            axis.tick_params(labelbottom=True)
            if axis is not line[0]:
                axis.set_ylabel("")
        figure.colorbar(line[-1].images[0], ax=list(line), shrink=0.8)
    return figure


def _heat_map(
    axis: Axes,
    kind: str,
    weight: Tensor,
    student_heads: int,
    teacher_heads: int,
    highest: float | None = None,
) -> None:
    image = axis.imshow(weight.numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
    if highest is not None:
        image.set_clim(0.0, highest)
    rows, columns = weight.shape
    for layer in range(teacher_heads, rows, teacher_heads):
        axis.axhline(layer - 0.5, color="white", linewidth=1)
    for layer in range(student_heads, columns, student_heads):
        axis.axvline(layer - 0.5, color="white", linewidth=1)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(MaxNLocator(integer=True))
    axis.set(
        title=kind,
        xlabel=f"student head ({student_heads} a layer)",
        ylabel=f"teacher head ({teacher_heads} a layer)",
    )
