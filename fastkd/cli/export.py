"""`fastkd export`."""

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastkd.cli.arguments import CHECKPOINT, RUN

if TYPE_CHECKING:
    from fastkd.runs.folder import RunFolder

LOGGER = logging.getLogger(__name__)


@click.command("export", short_help="Write a run for other libraries.")
@RUN
@click.option(
    "--to",
    "layout",
    type=click.Choice(["transformers", "ctranslate2"]),
    required=True,
    help="Which library is to load it.",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--quantization",
    type=click.Choice(["int8", "int8_float32", "int16", "float16", "bfloat16", "float32"]),
    help="Of the weights, for ctranslate2; default: as they are.",
)
@click.option(
    "--try",
    "tried",
    type=click.Path(path_type=Path),
    help="Lines on which a quantized export is compared with float32; default: some of data.dev.",
)
@CHECKPOINT
def command(
    run: str,
    layout: str,
    folder: Path,
    quantization: str | None,
    tried: Path | None,
    checkpoint: str,
) -> None:
    """Write RUN's model and tokenizer to FOLDER in another library's layout.

    transformers: Marian for a post-norm model, M2M100 for a pre-norm one. Marian with two
    vocabularies needs Transformers 5.18 to translate, and takes a line's >>xx<< at its beginning
    for a language's code. A quantized export is tried on this machine, and its translations are
    compared with those in float32.
    """
    from fastkd.runs.folder import RunFolder

    source = RunFolder.open(run)
    if layout == "transformers":
        if quantization:
            raise click.UsageError("--quantization goes with --to ctranslate2")
        from fastkd.export.transformers import export_transformers

        export_transformers(source, folder, checkpoint)
    else:
        from fastkd.export.ctranslate2 import export_ctranslate2

        export_ctranslate2(source, folder, checkpoint, quantization)
    click.echo(f"{folder}: {run} for {layout}")
    if quantization not in (None, "float32"):
        _try(source, folder, quantization, tried, checkpoint)


def _try(
    run: "RunFolder", folder: Path, quantization: str, tried: Path | None, checkpoint: str
) -> None:
    """Says how far the export is from float32 on this machine."""
    from fastkd.data.text import read_lines, text_file
    from fastkd.errors import InputError
    from fastkd.export.engine import TRIED, far_apart, try_export

    data = run.config.data
    try:
        path = tried or text_file(data.dev, data.source)
        lines = list(itertools.islice(read_lines(path), TRIED))
    except InputError as error:
        if tried is not None:
            raise
        click.echo(f"{quantization}: not tried, for want of lines ({error}); --try FILE names some")
        return
    trial = try_export(run, folder, lines, checkpoint)
    if trial.close:
        click.echo(f"{quantization}: {trial}")
    else:
        LOGGER.warning("%s", far_apart(trial, quantization))
