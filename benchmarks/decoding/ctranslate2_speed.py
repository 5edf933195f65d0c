"""Sentences a second of a run beside its export for CTranslate2, with batches of 1 and of 32.

    python -m benchmarks.decoding.ctranslate2_speed [RUN LINES] [--threads 2] [--write CSV] …

Without a run the demo's student is trained for a moment on the invented language, which takes
about half a minute. Both translate the same lines of a text file, longest first, with the run's
beam, in float32; for int8 CTranslate2 quantizes the weights. The candidates take turns batch by
batch, so that whatever else the machine does falls on all of them; the figure is the sentences over
the sum of the medians of all rounds, and how many times the time of CTranslate2 in float32 that is.
Text to pieces and back is part of it, reading the models is not.
"""

import argparse
import csv
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import ctranslate2
import torch

from fastkd.config.load import revised
from fastkd.data.prepare import open_prepared
from fastkd.data.text import read_lines
from fastkd.demo.run import demo_config, write_demo_corpus
from fastkd.export.ctranslate2 import export_ctranslate2
from fastkd.files import write_file
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import open_translator
from fastkd.train.start import start

BATCHES = (1, 32)
BASE = "CTranslate2 float32"  # what the others are compared with
_LIMIT = 256  # pieces a translation


@dataclass(frozen=True)
class Speed:
    """times: its time over that of CTranslate2 in float32; same: lines translated as fastkd does"""

    candidate: str
    batch: int
    threads: int
    sentences: int
    per_second: float
    times: float
    same: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("lines", type=Path, nargs="?")
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    if arguments.run is not None and arguments.lines is None:
        parser.error("RUN: expected a text file, LINES, beside it")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.run is None:
            run, text = trained_for_a_moment(Path(folder))
        else:
            run, text = RunFolder.open(arguments.run), arguments.lines
        lines = list(read_lines(text))[: arguments.sentences]
        speeds = measured(run, lines, arguments.threads, arguments.rounds)
    print("candidate".ljust(20), "batch  sentences/s  times  same")
    for speed in speeds:
        same = f"{speed.same}/{speed.sentences}"
        figures = f"{speed.batch:5}{speed.per_second:13.1f}{speed.times:7.2f}"
        print(speed.candidate.ljust(20), figures, same.rjust(6))
    if arguments.write is not None:
        rows = io.StringIO()
        table = csv.DictWriter(rows, [field.name for field in fields(Speed)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(speed) for speed in speeds)
        write_file(arguments.write, rows.getvalue().encode())


def trained_for_a_moment(folder: Path) -> tuple[RunFolder, Path]:
    """A run of the demo's student on the invented language, and test sentences."""
    write_demo_corpus(folder, print)
    config = demo_config(folder, "student")
    short = {"updates": 300, "validate_every": 300, "save_every": 300, "bleu_sentences": 0}
    config = replace(config, training=revised(config.training, "training", **short))
    start(config, open_prepared(config)).train()
    assert config.data.test is not None
    return RunFolder.open(config.run), Path(f"{config.data.test}.{config.data.source}")


def measured(run: RunFolder, lines: list[str], threads: int, rounds: int) -> list[Speed]:
    """Of every candidate with batches of every size."""
    lines = sorted(lines, key=len, reverse=True)
    candidates = {"fastkd": _ours(run)}
    for kind in ("float32", "int8"):
        candidates[f"CTranslate2 {kind}"] = _theirs(run, kind, threads)
    wanted = candidates["fastkd"](lines)
    same = {
        name: sum(one == other for one, other in zip(translated(lines), wanted, strict=True))
        for name, translated in candidates.items()
    }
    found = []
    for size in BATCHES:
        speeds = _speeds(candidates, lines, size, rounds)
        for name, speed in speeds.items():
            times = speeds[BASE] / speed
            found.append(Speed(name, size, threads, len(lines), speed, times, same[name]))
    return found


Translate = Callable[[list[str]], list[str]]


def _ours(run: RunFolder) -> Translate:
    translator = open_translator(run, device="cpu")
    return lambda lines: [best.text for best, *_ in translator.translate(lines)]


def _theirs(run: RunFolder, kind: str, threads: int) -> Translate:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        export_ctranslate2(run, out, quantization=kind)
        translator = ctranslate2.Translator(
            str(out), device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
        )
    source, target, decoding = run.tokenizers.source, run.tokenizers.target, run.config.decoding
    ids = {target.piece(index): index for index in range(target.size)}

    def translated(lines: list[str]) -> list[str]:
        pieces = [[source.piece(i) for i in row] for row in source.encode(lines)]
        results = translator.translate_batch(
            pieces,
            beam_size=decoding.beam,
            length_penalty=decoding.length_penalty,
            max_decoding_length=_LIMIT,
            min_decoding_length=0,
        )
        written = [result.hypotheses[0] for result in results]
        return target.decode([ids[piece] for piece in row] for row in written)

    return translated


def _speeds(
    candidates: dict[str, Translate], lines: list[str], size: int, rounds: int
) -> dict[str, float]:
    """Sentences a second of each."""
    batches = [lines[start : start + size] for start in range(0, len(lines), size)]
    seconds = dict.fromkeys(candidates, 0.0)
    for translated in candidates.values():
        translated(batches[0])
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, translated in candidates.items():
                start = time.perf_counter()
                translated(batch)
                times[name].append(time.perf_counter() - start)
        for name in candidates:
            seconds[name] += statistics.median(times[name])
    return {name: len(lines) / total for name, total in seconds.items()}


if __name__ == "__main__":
    main()
