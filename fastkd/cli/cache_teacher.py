"""`fastkd cache-teacher`."""

from pathlib import Path

import click

from fastkd.cli.arguments import CHECKPOINT, DEVICE, RUN
from fastkd.tables import size


@click.command("cache-teacher", short_help="Keep what a teacher expects of a text.")
@RUN
@click.argument("split", type=click.Choice(["train", "dev", "test"]))
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Ids kept at each target position.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the log-probabilities.",
)
@click.option("-o", "--output", type=click.Path(), help="Default: RUN/cache-SPLIT.")
@CHECKPOINT
@DEVICE
def command(
    run: str,
    split: str,
    top_k: int,
    dtype: str,
    output: str | None,
    checkpoint: str,
    device: str,
) -> None:
    """Write what RUN's model expects at every target position of a SPLIT of its corpus.

    A student whose config has teacher.cache trains on it with no teacher in memory.
    """
    from fastkd.cli.progress import stages
    from fastkd.runs.caching import cache_teacher
    from fastkd.runs.folder import RunFolder

    folder = Path(output or Path(run) / f"cache-{split}")
    with stages() as progress:
        corpus = cache_teacher(
            *(RunFolder.open(run), split, top_k, folder, checkpoint, dtype, device),
            lambda done, total: progress("caching", done, total),
        )
    taken = sum(file.stat().st_size for file in folder.iterdir())
    click.echo(f"{folder}: {top_k} ids a position of {len(corpus):,} pairs, {size(taken)}")
