"""`fastkd runs`."""

from pathlib import Path

import click


@click.command("runs", short_help="List the runs that there are.")
@click.argument("folder", type=click.Path(), default="runs")
def command(folder: str) -> None:
    """List the runs in FOLDER and in the folders within it."""
    from fastkd.compare.facts import Facts, find_runs
    from fastkd.compare.table import of_runs
    from fastkd.errors import InputError
    from fastkd.tables import show

    if not Path(folder).exists():
        raise InputError(f"{folder}: no such folder; expected one of runs, as fastkd train makes")
    found = [Facts.read(path) for path in find_runs(Path(folder))]
    if not found:
        raise InputError(f"{folder}: holds no run (a folder with config.yaml and log.jsonl)")
    show([of_runs(found)])
