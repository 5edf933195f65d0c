"""Sentences a second of a run beside its export for CTranslate2, with batches of 1 and of 32.

    python -m benchmarks.decoding.ctranslate2_speed RUN LINES [--sentences 64] [--rounds 3] …

Both translate the same lines of a text file, longest first, with the run's beam, in float32; for
int8 CTranslate2 quantizes the weights. The candidates take turns batch by batch, so that whatever
else the machine does falls on all of them; the figure is the sentences over the sum of the medians
of all rounds, and how many times the time of CTranslate2 in float32 that is. Text to pieces and
back is part of it, reading the models is not.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import torch

from fastkd.data.text import read_lines
from fastkd.export.ctranslate2 import export_ctranslate2
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import open_translator

BATCHES = (1, 32)
_LIMIT = 256  # pieces a translation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("lines", type=Path)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = RunFolder.open(arguments.run)
    lines = sorted(list(read_lines(arguments.lines))[: arguments.sentences], key=len, reverse=True)
    candidates = {"fastkd": _ours(run)}
    for kind in ("float32", "int8"):
        candidates[f"CTranslate2 {kind}"] = _theirs(run, kind, arguments.threads)
    head = [f"batch {size}".rjust(10) + "times".rjust(7) for size in BATCHES]
    print("candidate".ljust(20), *head, "same".rjust(8))
    speeds = [_speeds(candidates, lines, size, arguments.rounds) for size in BATCHES]
    wanted = candidates["fastkd"](lines)
    for name, translated in candidates.items():
        same = sum(one == other for one, other in zip(translated(lines), wanted, strict=True))
        cells = [f"{s[name]:10.1f}{s['CTranslate2 float32'] / s[name]:7.2f}" for s in speeds]
        print(name.ljust(20), *cells, f"{same}/{len(lines)}".rjust(8))


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
