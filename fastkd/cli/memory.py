"""`fastkd memory`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from fastkd.cli.arguments import CONFIG, DEVICE, OVERRIDES
from fastkd.errors import InputError

_PICTURES = (".png", ".svg", ".pdf")
_SNAPSHOTS = (".pickle", ".pkl")
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@click.command("memory", short_help="Show where a step's memory goes.")
@CONFIG
@OVERRIDES
@DEVICE
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    multiple=True,
    help="Batch sizes to compare; may be repeated. Default: the config's.",
)
@click.option(
    "--predict",
    metavar="GPU-MEMORY",
    help="Predict for a CUDA device with this memory, such as 24GiB; none is needed.",
)
@click.option("--teacher", metavar="CONFIG", help="The teacher's config, while its run is missing.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Predict for one of so many devices that share the step.",
)
@click.option(
    "--sharding",
    type=click.Choice(["none", "fully_shard"]),
    help="How they share parameters, gradients and optimizer. Default: the config's.",
)
@click.option("--largest/--no-largest", default=True, help="Whether to search the largest batch.")
@click.option("--plot", type=click.Path(), help="Draw the timeline of the step here.")
@click.option(
    "--snapshot", type=click.Path(), help="CUDA: write a snapshot for PyTorch's memory viewer here."
)
def command(
    config: str,
    overrides: tuple[str, ...],
    device: str,
    batch_tokens: tuple[int, ...],
    predict: str | None,
    teacher: str | None,
    processes: int | None,
    sharding: str | None,
    largest: bool,
    plot: str | None,
    snapshot: str | None,
) -> None:
    """Show where the memory of a training step of CONFIG goes, and the largest batch that fits.

    The step is that of the heaviest update of the first epoch, on random weights.

    CONFIG may also be a Transformers student, as a folder with config.json, or a YAML file with
    the keys student, teacher, losses, batch, length, target_length, accumulation, precision, optim,
    gradient_checkpointing, lora, processes, sharding: a step of somebody else's trainer. Its batch
    is that of one device; training.batch_tokens is that of all.

    Or CONFIG is a snapshot that torch.cuda.memory._dump_snapshot wrote, as a .pickle, which is
    shown likewise.
    """
    from fastkd.cli.progress import counting
    from fastkd.config.load import load_config
    from fastkd.memory.pair.command import PairQuestion
    from fastkd.memory.pair.command import answer as answer_pair
    from fastkd.memory.pair.config import pair_config
    from fastkd.memory.step.command import Question, answer
    from fastkd.runs.device import pick_device

    if Path(config).suffix in _SNAPSHOTS:
        others = (
            overrides or batch_tokens or teacher or predict or snapshot or processes or sharding
        )
        if others or device != "auto" or not largest:
            raise InputError(f"{config}: a snapshot; expected no other option than --plot")
        _tell_snapshot(Path(config), Path(plot) if plot else None)
        return
    if predict is not None and device != "auto":
        raise InputError("--device: has no meaning with --predict, which is for a CUDA device")
    where = pick_device(device) if predict is None else None
    if snapshot and (where is None or where.type != "cuda"):
        raise InputError("--snapshot: needs a CUDA device, and no --predict")
    picture, recording = (Path(file) if file else None for file in (plot, snapshot))
    if picture is not None:
        check_picture("--plot", picture)
    capacity = memory_size(predict) if predict else None
    shared = () if processes is None else (f"processes={processes}",)
    divided = () if sharding is None else (sharding,)
    in_pair = (*overrides, *shared, *(f"sharding={kind}" for kind in divided))
    if pair := pair_config(config, in_pair):
        if batch_tokens or teacher:
            raise InputError("--batch-tokens, --teacher: expected batch=… and teacher=… of a pair")
        asked = PairQuestion(pair, where, capacity, largest, picture, recording)
        _tell(answer_pair(asked, counting))
        return
    question = Question(
        config=load_config(config, (*overrides, *(f"training.sharding={k}" for k in divided))),
        teacher=load_config(teacher).model if teacher else None,
        device=where,
        capacity=capacity,
        batch_tokens=batch_tokens,
        processes=processes or 1,
        largest=largest,
        plot=picture,
        snapshot=recording,
    )
    _tell(answer(question, counting))


def _tell_snapshot(file: Path, picture: Path | None) -> None:
    from fastkd.memory.snapshot import recorded_step
    from fastkd.memory.step.tables import step_tables

    if picture is not None:
        check_picture("--plot", picture)
    title, columns = f"Memory as recorded in {file.name}", [("recorded", recorded_step(file))]
    _tell(step_tables(title, columns))
    if picture is not None:
        from fastkd.memory.step.plots import plot_timeline

        plot_timeline(columns, title, picture)
        click.echo(f"timeline: {picture}")


def check_picture(option: str, file: Path) -> None:
    """Before the work whose picture it is begins."""
    if file.suffix not in _PICTURES:
        known = ", ".join(_PICTURES)
        raise InputError(f"{option}: expected a file that ends in one of {known}, not {file}")


def _tell(parts: Iterable[Any]) -> None:
    """Prints lines and tables as they come."""
    from fastkd.tables import Table, show

    for part in parts:
        if isinstance(part, Table):
            show([part])
        else:
            click.echo(part)


def memory_size(text: str) -> int:
    """Bytes of "24GiB", "24G" or "80 gb"; units are powers of 1024, without one GiB is meant."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--predict: expected a memory size such as 24GiB, not {text!r}")
    return int(float(found[1]) * _UNITS[found[2] or "g"])
