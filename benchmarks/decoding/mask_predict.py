"""Sentences a second of mask-predict beside beam search, with batches of 1 and of 32.

    python -m benchmarks.decoding.mask_predict AUTOREGRESSIVE_RUN MASKED_RUN [--split test] …

Both runs translate the same sentences, longest first, with PyTorch on `--threads` threads. The
candidates take turns batch by batch, so that whatever else the machine does falls on all of them;
the figure is the sentences over the sum of the medians of `--rounds` rounds. Text to pieces and
back is part of it, reading the models is not.
"""

import argparse
import dataclasses
import statistics
import time

import torch

from fastkd.config.tree import DecodingConfig
from fastkd.data.text import read_lines, text_file
from fastkd.data.tokenizer import Tokenizers
from fastkd.decode.translate import translate
from fastkd.nn.transformer import Transformer
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import decoding_settings

BATCHES = (1, 32)
BEAMS = (1, 5)
PASSES = (1, 2, 4, 8)
WINDOWS = (0, 2)
Candidates = dict[str, tuple[Transformer, Tokenizers, DecodingConfig]]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    causal, masked = RunFolder.open(arguments.causal), RunFolder.open(arguments.masked)
    candidates = _candidates(causal, masked)
    data = causal.config.data
    text = text_file(getattr(data, arguments.split), data.source)
    lines = sorted(list(read_lines(text))[: arguments.sentences], key=len, reverse=True)
    print("search".ljust(28), *(f"batch {batch}".rjust(10) for batch in BATCHES))
    speeds = [_speeds(candidates, lines, batch, arguments.rounds) for batch in BATCHES]
    for name in candidates:
        print(name.ljust(28), *(f"{speed[name]:10.1f}" for speed in speeds))


def _candidates(causal: RunFolder, masked: RunFolder) -> Candidates:
    """By name: model, tokenizers, decoding settings."""
    models = {run: (run.load_model(), run.tokenizers) for run in (causal, masked)}
    beams = {
        f"beam {beam}" if beam > 1 else "greedy": (
            *models[causal],
            decoding_settings(causal, beam=beam),
        )
        for beam in BEAMS
    }
    passes = {
        f"{count} passes, {2 * window + 1} lengths": (
            *models[masked],
            decoding_settings(masked, passes=count, length_window=window),
        )
        for window in WINDOWS
        for count in PASSES
    }
    return beams | passes


def _speeds(candidates: Candidates, lines: list[str], batch: int, rounds: int) -> dict[str, float]:
    seconds: dict[str, float] = dict.fromkeys(candidates, 0.0)
    for start in range(0, len(lines), batch):
        part = lines[start : start + batch]
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, (model, tokenizers, settings) in candidates.items():
                # The lines are one batch, however long they are.
                settings = dataclasses.replace(settings, batch_tokens=1 << 30)
                begin = time.perf_counter()
                translate(model, tokenizers, part, settings, "cpu")
                times[name].append(time.perf_counter() - begin)
        for name, measured in times.items():
            seconds[name] += statistics.median(measured)
    return {name: len(lines) / total for name, total in seconds.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("causal", metavar="AUTOREGRESSIVE_RUN")
    parser.add_argument("masked", metavar="MASKED_RUN")
    parser.add_argument("--split", default="test")
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
