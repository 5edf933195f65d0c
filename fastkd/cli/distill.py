"""`fastkd distill`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.arguments import CHECKPOINT, DEVICE, RUN, engine_options, search_options


@click.command("distill", short_help="Write a teacher's translations of a text.")
@RUN
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Source text to translate, such as monolingual text; default: RUN's training text.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="References of --source, for the choice among --n-best.",
)
@click.option(
    "--n-best",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Translations of a line among which the one nearest to its reference, by chrF, is taken.",
)
@CHECKPOINT
@search_options
@engine_options
@DEVICE
def command(
    run: str,
    prefix: Path,
    source: Path | None,
    reference: Path | None,
    n_best: int,
    checkpoint: str,
    device: str,
    engine: str,
    compute_type: str,
    **search: Any,
) -> None:
    """Write RUN's translations of its training text to PREFIX.SOURCE and PREFIX.TARGET.

    That is sequence-level distillation: the next config has `data.train: PREFIX` and
    `tokenizer: RUN`. The same command goes on where it was ended.
    """
    from fastkd.cli.progress import stages
    from fastkd.runs.folder import RunFolder
    from fastkd.runs.sequences import Request, distil
    from fastkd.runs.translation import Engine

    by = Engine(engine, compute_type)
    request = Request(source, reference, checkpoint, device, n_best, by)
    with stages() as progress:
        found = distil(
            RunFolder.open(run),
            prefix,
            request,
            lambda done, total: progress("translating", done, total),
            **search,
        )
    how = "unchanged" if found.reused else "written"
    empty = f", {found.empty:,} of them empty" if found.empty else ""
    click.echo(f"{found.source} and {found.target}: {how}; {found.lines:,} lines{empty}")
