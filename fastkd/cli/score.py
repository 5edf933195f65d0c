"""`fastkd score`."""

import contextlib

import click

from fastkd.cli.arguments import CHECKPOINT, DEVICE, RUN, search_options


@click.command("score")
@RUN
@click.argument("split", type=click.Choice(["dev", "test", "train"]))
@CHECKPOINT
@search_options
@DEVICE
@click.option("-o", "--output", type=click.Path(), help="Also write the translations here.")
def command(run, split, checkpoint, device, output, **search) -> None:
    """Translate a SPLIT of RUN's corpus and print BLEU and chrF with their signatures."""
    from fastkd.cli.progress import counting
    from fastkd.data.lines import opened_output
    from fastkd.decode.score import score
    from fastkd.runs.folder import RunFolder
    from fastkd.runs.translation import translate_split

    folder = RunFolder.open(run)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened_output(output, None)) if output else None
        with counting("translating") as progress:
            hypotheses, references = translate_split(
                folder, split, checkpoint, device, progress, **search
            )
        if file:
            file.writelines(line.encode() + b"\n" for line in hypotheses)
    result = score(hypotheses, references)
    click.echo(f"BLEU {result.bleu:.2f}  {result.bleu_signature}")
    click.echo(f"chrF {result.chrf:.2f}  {result.chrf_signature}")
