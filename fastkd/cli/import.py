"""`fastkd import`."""

from pathlib import Path

import click


@click.command("import", short_help="Make a run of a Marian checkpoint.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
def command(folder: Path, run: Path) -> None:
    """Make a run of FOLDER, a Marian checkpoint of Transformers such as OPUS-MT's.

    RUN then translates, and can be a student's teacher: its config has `tokenizer: RUN` and
    `teacher: {run: RUN}`.
    """
    from fastkd.export.marian import import_marian

    import_marian(folder, run)
    click.echo(f"{run}: from {folder}")
