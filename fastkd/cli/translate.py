"""`fastkd translate`."""

import contextlib
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from fastkd.cli.arguments import CHECKPOINT, DEVICE, RUN, engine_options, search_options

if TYPE_CHECKING:
    from fastkd.decode.translate import Translation

_BUFFER = 1024


@click.command("translate", short_help="Translate a file or standard input.")
@RUN
@click.option("-i", "--input", "source", type=click.Path(), help="Default: standard input.")
@click.option(
    "-o", "--output", type=click.Path(), help="Default: standard output. Packed if named *.gz."
)
@click.option(
    "--n-best",
    type=click.IntRange(min=1),
    help="So many translations a line, best first, each after its line's number and a tab.",
)
@click.option("--scores", is_flag=True, help="Write log p / length ** penalty and a tab before it.")
@CHECKPOINT
@search_options
@engine_options
@DEVICE
@click.option(
    "--buffer",
    type=click.IntRange(min=1),
    help=f"Lines read before they are translated together; default: {_BUFFER}, and 1 at a terminal,"
    " which answers line by line.",
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
    n_best: int | None,
    scores: bool,
    checkpoint: str,
    device: str,
    engine: str,
    compute_type: str,
    buffer: int | None,
    invalid: str,
    **search: Any,
) -> None:
    """Translate a file or standard input, one sentence a line, in order.

    An empty line has an empty translation. An output file appears when it is complete. With
    --n-best or --scores a line of output is [NUMBER TAB] [SCORE TAB] TRANSLATION, NUMBER from 1.
    """
    from fastkd.data.lines import decoded_lines, opened_input, opened_output
    from fastkd.runs.folder import RunFolder
    from fastkd.runs.translation import Engine, open_translator

    folder = RunFolder.open(run)
    reading, writing = (getattr(stream, "buffer", None) for stream in (sys.stdin, sys.stdout))
    buffer = buffer or (1 if source is None and _at_terminal(reading) else _BUFFER)
    with opened_input(source, reading) as (file, name), opened_output(output, writing) as out:
        lines = decoded_lines(file, name, invalid)
        translator = open_translator(
            folder, checkpoint, device, Engine(engine, compute_type), n_best or 1, **search
        )
        with _watched(source, output) as done:
            for number, found in enumerate(translator.stream(lines, buffer), start=1):
                out.writelines(_rows(number, found, n_best is not None, scores))
                done(1)
                if number % buffer == 0:
                    out.flush()


def _rows(number: int, found: "list[Translation]", numbered: bool, scored: bool) -> Iterator[bytes]:
    """The lines that are written for one that was read."""
    for text, score in found:
        columns = [f"{number}"] * numbered + [f"{score:.6g}"] * scored + [text]
        yield "\t".join(columns).encode() + b"\n"


def _at_terminal(stream: IO[Any] | None) -> bool:
    return stream is not None and stream.isatty()


@contextlib.contextmanager
def _watched(source: str | None, output: str | None) -> "Iterator[Any]":
    """Progress, of a file with an estimate, unless lines are typed, or shown on the terminal."""
    from fastkd.cli.progress import counting
    from fastkd.data.lines import count_lines

    typed = source is None and _at_terminal(sys.stdin)
    if typed or (output is None and _at_terminal(sys.stdout)):
        yield lambda done: None
        return
    with counting("translating", None if source is None else count_lines(source)) as done:
        yield done
