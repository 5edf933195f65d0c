"""One table of several runs: how well they translate, how large and how fast they are."""

import csv
import dataclasses
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkd import tables
from fastkd.decode.score import score
from fastkd.files import write_file
from fastkd.runs.checkpoint import read_meta
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import translate_split


@dataclass(frozen=True)
class Row:
    """A trained model on the test set."""

    model: str
    bleu: float
    chrf: float
    parameters: int
    training_seconds: float
    sentences_per_second: float


def measure(title: str, run: RunFolder, split: str = "test", **search: Any) -> Row:
    """Translates a split with the run's best checkpoint and scores it.

    search: settings of `decoding_settings` other than the run's own
    """
    start = time.perf_counter()
    hypotheses, references = translate_split(run, split, **search)
    seconds = time.perf_counter() - start
    scores = score(hypotheses, references)
    model = run.load_model("best")
    return Row(
        title,
        scores.bleu,
        scores.chrf,
        sum(parameter.numel() for parameter in model.parameters()),
        read_meta(run.checkpoints()[-1])["seconds"],
        len(hypotheses) / seconds,
    )


def show(rows: list[Row], title: str, file: Path) -> None:
    """Prints the table and writes it to a CSV file."""
    header = ("model", "BLEU", "chrF", "parameters", "training time", "sentences/s")
    lines = [
        (
            row.model,
            f"{row.bleu:.1f}",
            f"{row.chrf:.1f}",
            f"{row.parameters:,}",
            f"{row.training_seconds:.0f} s",
            f"{row.sentences_per_second:.0f}",
        )
        for row in rows
    ]
    tables.show([tables.Table(title, header, lines)])
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, [field.name for field in dataclasses.fields(Row)])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    write_file(file, content.getvalue().encode())
