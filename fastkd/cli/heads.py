"""`fastkd heads`."""

from pathlib import Path

import click


@click.command("heads")
@click.argument("run", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), help="Also draw the mix of single heads here (.png, .svg)."
)
def command(run: str, output: str | None) -> None:
    """Show which student layers A2D compares each teacher layer of RUN with, over training.

    A share is what a layer's heads have of the learned mix, at validations from the first to the
    last, five at most. The picture has the single heads at the same ones.
    """
    from fastkd.compare.heads import Mixed, table_of
    from fastkd.errors import InputError
    from fastkd.runs.folder import RunFolder
    from fastkd.tables import show

    if output and Path(output).suffix not in (".png", ".svg", ".pdf"):
        raise InputError(
            f"--output: expected a name that ends in .png, .svg or .pdf, not {output!r}"
        )
    mixed = Mixed.read(RunFolder.open(run))
    heads = mixed.student_heads, mixed.teacher_heads
    show([table_of(mixed.mixes, *heads)])
    if output:
        from fastkd.pictures import write_picture
        from fastkd.plots import mixes_over_training

        write_picture(mixes_over_training(mixed.mixes, *heads), Path(output))
        click.echo(f"{output}: written")
