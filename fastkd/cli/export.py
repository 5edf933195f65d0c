"""`fastkd export`."""

from pathlib import Path

import click

from fastkd.cli.arguments import CHECKPOINT, RUN


@click.command("export")
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
@CHECKPOINT
def command(run: str, layout: str, folder: Path, quantization: str | None, checkpoint: str) -> None:
    """Write RUN's model and tokenizer to FOLDER in another library's layout.

    transformers: Marian for a post-norm model, M2M100 for a pre-norm one. Marian with two
    vocabularies needs Transformers 5.18 to translate.
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
