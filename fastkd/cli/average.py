"""`fastkd average`."""

import click

from fastkd.cli.arguments import RUN


@click.command("average", short_help="Average a run's last checkpoints.")
@RUN
@click.option("--last", type=click.IntRange(min=1), help="How many of the newest; default: all.")
def command(run: str, last: int | None) -> None:
    """Average the weights of RUN's kept checkpoints into RUN/average."""
    from fastkd.runs.average import average_checkpoints
    from fastkd.runs.folder import RunFolder

    folders = average_checkpoints(RunFolder.open(run), last)
    names = ", ".join(folder.name for folder in folders)
    click.echo(f"{run}/average: mean of {len(folders)} checkpoints: {names}")
