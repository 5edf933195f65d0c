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
    from fastkd.compare.heads import table_of
    from fastkd.errors import InputError
    from fastkd.runs.folder import RunFolder
    from fastkd.tables import show
    from fastkd.train.heads import read
    from fastkd.train.log import read_log

    if output and Path(output).suffix not in (".png", ".svg", ".pdf"):
        raise InputError(
            f"--output: expected a name that ends in .png, .svg or .pdf, not {output!r}"
        )
    folder = RunFolder.open(run)
    mixes = read(read_log(folder.log_file))
    if not mixes:
        raise InputError(
            f"{folder.log_file}: tells of no mix of heads; expected a run with a2d among its "
            "losses, trained since version 0.2"
        )
    teacher, theirs = folder.config.teacher, 1
    if teacher and teacher.run:
        try:
            theirs = RunFolder.open(teacher.run).config.model.heads
        except InputError as error:
            raise InputError(
                f"{folder.config_file}: teacher.run: expected the teacher's run, whose config.yaml"
                f" tells how many heads a layer has; {error}"
            ) from None
    heads = folder.config.model.heads, theirs
    show([table_of(mixes, *heads)])
    if output:
        from fastkd.pictures import write_picture
        from fastkd.plots import mixes_over_training

        write_picture(mixes_over_training(mixes, *heads), Path(output))
        click.echo(f"{output}: written")
