"""`fastkd score`."""

import contextlib
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fastkd.cli.arguments import CHECKPOINT, DEVICE, RUN, engine_options, search_options

if TYPE_CHECKING:
    from fastkd.runs.folder import RunFolder

LOGGER = logging.getLogger(__name__)


@click.command("score", short_help="Translate a split; BLEU and chrF.")
@RUN
@click.argument("split", type=click.Choice(["dev", "test", "train"]))
@CHECKPOINT
@search_options
@engine_options
@DEVICE
@click.option(
    "--tokenize",
    type=click.Choice(["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]),
    help="What cuts BLEU's words; default: as in the run's validations, or as the language needs.",
)
@click.option(
    "--against",
    type=click.Path(),
    metavar="RUN",
    help="Also translate with this run, and test the differences by paired bootstrap.",
)
@click.option(
    "-o", "--output", type=click.Path(), help="Also write the translations here; *.gz is packed."
)
def command(
    run: str,
    split: str,
    checkpoint: str,
    device: str,
    engine: str,
    compute_type: str,
    tokenize: str | None,
    against: str | None,
    output: str | None,
    **search: Any,
) -> None:
    """Translate a SPLIT of RUN's corpus and print BLEU and chrF with their signatures.

    They are kept in RUN/scores.json.
    """
    from fastkd.cli.progress import counting
    from fastkd.data.lines import opened_output
    from fastkd.decode.score import score
    from fastkd.runs.folder import RunFolder, Weights
    from fastkd.runs.scores import Entry, bleu_tokenizer_of, record_scores, sha256_of_text
    from fastkd.runs.translation import Engine, decoding_settings, split_text, translate_split

    folder, other = RunFolder.open(run), None if against is None else RunFolder.open(against)
    sources, references = split_text(folder, split)
    if other is not None:
        _check_same(folder, other, split, references)
    tokenizer, by = tokenize or bleu_tokenizer_of(folder), Engine(engine, compute_type)
    score(references[:1], references[:1], tokenizer)  # whoever lacks its package need not wait

    def translated(
        which: RunFolder, weights: Weights, text: tuple[list[str], list[str]] | None = None
    ) -> list[str]:
        with counting("translating", len(references)) as progress:
            return translate_split(
                which, split, checkpoint, device, progress, by, weights, text, **search
            )[0]

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(opened_output(output, None)) if output else None
        decoding = asdict(decoding_settings(folder, **search))
        weights = folder.read_weights(checkpoint)  # these are scored, whatever is trained meanwhile
        hypotheses = translated(folder, weights, (sources, references))
        if file:
            file.writelines(line.encode() + b"\n" for line in hypotheses)
    result = score(hypotheses, references, tokenizer)
    click.echo(f"BLEU {result.bleu:.2f}  {result.bleu_signature}")
    click.echo(f"chrF {result.chrf:.2f}  {result.chrf_signature}")
    if os.access(folder.path, os.W_OK):
        entry = Entry(
            split=split,
            checkpoint=checkpoint,
            update=weights.meta.get("update"),
            sentences=len(references),
            **asdict(result),
            decoding=decoding,
            engine=engine,
            compute_type=compute_type,
            text_sha256=sha256_of_text(sources, references),
        )
        record_scores(folder, entry)
    else:
        LOGGER.warning("%s: cannot be written; the scores are not kept there", folder.path)
    if other is not None:
        _compare(
            translated(other, other.read_weights(checkpoint)),
            hypotheses,
            references,
            tokenizer,
            str(against),
        )


def _check_same(run: "RunFolder", other: "RunFolder", split: str, references: list[str]) -> None:
    """Both are scored on the same sentences."""
    from fastkd.errors import InputError
    from fastkd.runs.translation import split_text

    if split_text(other, split)[1] != references:
        raise InputError(
            f"--against {other.path}: its data.{split} has other references than {run.path}'s"
        )


def _compare(
    baseline: list[str], system: list[str], references: list[str], tokenizer: str, name: str
) -> None:
    from fastkd.decode.score import compare

    click.echo(f"against {name}, paired bootstrap of 1,000 resamples, ± for 95 %:")
    for found in compare(baseline, system, references, tokenizer):
        click.echo(
            f"{found.metric} {found.system:.2f} ± {found.system_interval:.2f}  "
            f"there {found.baseline:.2f} ± {found.baseline_interval:.2f}  "
            f"difference {found.system - found.baseline:+.2f}  p = {found.p:.4f}"
        )
