"""`fastkd demo`."""

from pathlib import Path

import click


@click.command("demo", short_help="Try every method on an invented language.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo-out",
    show_default=True,
    help="Folder of the corpus, the runs, the table and the pictures.",
)
@click.option("--nar", is_flag=True, help="Show the non-autoregressive models instead.")
def command(out: Path, nar: bool) -> None:
    """Train a teacher and students by each method on an invented language pair; show a table.

    With --nar: a masked model at one pass and at four, and DiMS at one, beside the teacher.
    Takes a few minutes on two cores, and tells first how many here. Started again, it goes on.
    """

    def say(text: str) -> None:
        click.echo(text, err=True)

    if nar:
        from fastkd.demo.nar import run_nar_demo

        run_nar_demo(out, say)
    else:
        from fastkd.demo.run import run_demo

        run_demo(out, say)
