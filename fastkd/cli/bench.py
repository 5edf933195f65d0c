"""`fastkd bench`."""

from pathlib import Path

import click

from fastkd.cli.arguments import DEVICE


@click.command("bench")
@click.option("--op", "operations", metavar="NAME", multiple=True, help="What to measure; repeat.")
@DEVICE
@click.option(
    "--shapes",
    metavar="SHAPE",
    multiple=True,
    help="Such as B=8,T=512, or a sweep: smoke, cpu, cuda. Repeat. Default: the device's sweep.",
)
@click.option("--against", metavar="NAMES", help="Who takes part, with commas. Default: everyone.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Time for each shape.",
)
@click.option("--memory/--no-memory", default=True, help="Whether to measure peak memory.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder for CSV and plots.")
@click.option("--list", "listed", is_flag=True, help="Name the operations and providers, and end.")
def command(operations, device, shapes, against, dtype, seconds, memory, out, listed) -> None:
    """Measure the losses: time and peak memory against every alternative that is installed.

    Each provider first shows that it computes the same loss and gradients. "bound" is the
    time that the machine's rates allow, as PyTorch's own operators reach them, as a share of the
    time taken.
    """
    from fastkd.bench import providers
    from fastkd.bench.command import NAMES, Question, answer, check
    from fastkd.bench.run import Effort
    from fastkd.bench.tables import tables
    from fastkd.runs.device import pick_device

    if listed:
        click.echo(f"operations: {', '.join(NAMES)}")
        click.echo(f"providers: {', '.join(providers.NAMES)}")
        return
    question = Question(
        operations=operations or NAMES,
        device=pick_device(device),
        shapes=shapes,
        against=against.split(",") if against else providers.NAMES,
        dtype=dtype,
        effort=Effort(seconds=seconds, memory=memory),
        out=Path(out) if out else None,
    )
    check(question)
    for rows in answer(question):
        for table in tables(rows):
            click.echo(f"{table.text()}\n")
    if question.out is not None:
        _draw(question)


def _draw(question) -> None:
    from fastkd.bench.command import results_file
    from fastkd.bench.plots import plot_all
    from fastkd.bench.record import latest, read

    file = results_file(question.out, question.device)
    plot_all(latest(read(file)), question.out, question.device.type)
