"""`fastkd translate`."""

import sys

import click

from fastkd.cli.arguments import BEAM, CHECKPOINT, DEVICE, LENGTH_PENALTY, RUN


@click.command("translate")
@RUN
@click.option("-i", "--input", "source", type=click.Path(), help="Default: standard input.")
@click.option("-o", "--output", type=click.Path(), help="Default: standard output.")
@CHECKPOINT
@BEAM
@LENGTH_PENALTY
@DEVICE
@click.option(
    "--buffer",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Lines read before they are translated together; 1 answers line by line.",
)
def command(run, source, output, checkpoint, beam, length_penalty, device, buffer) -> None:
    """Translate a file or standard input, one sentence a line, in order."""
    from fastkd.decode.run import run_translator
    from fastkd.decode.text_stream import read_lines, writing
    from fastkd.runs.folder import RunFolder

    translator = run_translator(RunFolder.open(run), checkpoint, beam, length_penalty, device)
    with read_lines(source, sys.stdin.buffer) as lines, writing(output, sys.stdout.buffer) as write:
        for translation in translator.stream(lines, buffer):
            write(translation)
