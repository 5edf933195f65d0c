"""`fastkd translate`."""

import sys
from typing import Any

import click

from fastkd.cli.arguments import CHECKPOINT, DEVICE, RUN, search_options


@click.command("translate")
@RUN
@click.option("-i", "--input", "source", type=click.Path(), help="Default: standard input.")
@click.option("-o", "--output", type=click.Path(), help="Default: standard output.")
@CHECKPOINT
@search_options
@DEVICE
@click.option(
    "--buffer",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Lines read before they are translated together; 1 answers line by line.",
)
@click.option(
    "--invalid",
    type=click.Choice(["refuse", "replace"]),
    default="refuse",
    show_default=True,
    help="What becomes of bytes that are not UTF-8: an error, or U+FFFD.",
)
def command(
    run: str,
    source: str | None,
    output: str | None,
    checkpoint: str,
    device: str,
    buffer: int,
    invalid: str,
    **search: Any,
) -> None:
    """Translate a file or standard input, one sentence a line, in order.

    An empty line has an empty translation. An output file appears when it is complete.
    """
    from fastkd.data.lines import decoded_lines, opened_input, opened_output
    from fastkd.runs.folder import RunFolder
    from fastkd.runs.translation import translate_lines

    folder = RunFolder.open(run)
    reading, writing = (getattr(stream, "buffer", None) for stream in (sys.stdin, sys.stdout))
    with opened_input(source, reading) as (file, name), opened_output(output, writing) as out:
        lines = decoded_lines(file, name, invalid)
        translations = translate_lines(folder, lines, checkpoint, device, buffer, **search)
        for number, translation in enumerate(translations, start=1):
            out.write(translation.encode() + b"\n")
            if number % buffer == 0:
                out.flush()
