"""`fastkd demo`."""

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo-out",
    show_default=True,
    help="Folder of the corpus, the runs, the table and the pictures.",
)
def command(out: Path) -> None:
    """Train a teacher and students by each method on an invented language pair; show a table.

    Takes about ten minutes on two cores. Started again, it goes on where it was.
    """
    from fastkd.demo.run import run_demo

    run_demo(out, lambda text: click.echo(text, err=True))
