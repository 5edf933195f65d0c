"""What attention alignment adds to a training step that distils words already.

    python -m benchmarks.training.alignment_step PREPARED [--recipe NAME] [--out FOLDER] …

Updates have the sentence lengths of the corpus that `fastkd prepare` wrote to PREPARED, cut as the
recipe cuts them; weights and pieces are random. All steps take turns, update by update; `cost` is
the median over the rounds of a step's time over that of word-level distillation. The rows also go
to `cpu.csv` in FOLDER.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from fastkd.bench.command import results_file
from fastkd.bench.record import Row, append, this_machine
from fastkd.bench.run import figures
from fastkd.bench.tables import TRAINING, tables
from fastkd.bench.turns import host_clock, in_turns
from fastkd.config.load import load_config
from fastkd.config.tree import A2D
from fastkd.data.batches import Batch, BatchPlan
from fastkd.data.corpus import Corpus
from fastkd.data.tokenizer import Tokenizers
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Update, Vocabulary
from fastkd.tables import show

BASE = "word KD"
CPU = torch.device("cpu")
BACKENDS: tuple[Literal["torch", "reference"], ...] = ("torch", "reference")
WARMUP = 2
Key = tuple[str, str]  # method, backend


def steps(recipe: str, vocabulary: Vocabulary) -> dict[Key, TrainingStep]:
    teacher = load_config(f"{recipe}/teacher").model
    word, align = load_config(f"{recipe}/word_kd"), load_config(f"{recipe}/a2d")
    found = {(BASE, "torch"): TrainingStep(word, vocabulary, teacher, CPU)}
    for kind in ("mixture", "row", "map"):
        losses = tuple(
            dataclasses.replace(loss, normalization=kind) if isinstance(loss, A2D) else loss
            for loss in align.losses
        )
        for backend in BACKENDS:
            training = dataclasses.replace(align.training, backend=backend)
            config = dataclasses.replace(align, losses=losses, training=training)
            step = TrainingStep(config, vocabulary, teacher, CPU)
            found[f"A2D, {kind}", backend] = step
    return found


def updates(prepared: str, recipe: str, count: int) -> list[Update]:
    corpus = Corpus(f"{prepared}/train")
    tokens = load_config(f"{recipe}/a2d").training.batch_tokens
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, tokens)
    return [
        Update(plan.source_lengths[ids], plan.target_lengths[ids]) for ids in plan.epoch(1)[:count]
    ]


def rows(recipe: str, prepared: str, rounds: int) -> list[Row]:
    tokenizers = Tokenizers.load(prepared)
    vocabulary = Vocabulary.of_sizes(tokenizers.source.size, tokenizers.target.size)
    batches = [
        (update, update.pieces(1, vocabulary))
        for update in updates(prepared, recipe, WARMUP + rounds)
    ]
    calls = {
        name: partial(_step, step, batches) for name, step in steps(recipe, vocabulary).items()
    }
    times = in_turns(calls, rounds, CPU, WARMUP)
    base = times[BASE, "torch"]
    return [
        Row(
            operation=TRAINING,
            shape=f"{recipe} {method}",
            dtype="float32",
            provider=backend,
            version="",
            direction="step",
            status="ok",
            clock=host_clock(CPU).__name__,
            **figures(seconds, base),
        )
        for (method, backend), seconds in times.items()
    ]


def _step(step: TrainingStep, batches: list[tuple[Update, list[Batch]]], number: int) -> None:
    step(*batches[number])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prepared")
    parser.add_argument("--recipe", default="wmt22-de-dsb")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder of results; none: only the table")
    arguments = parser.parse_args()
    found = rows(arguments.recipe, arguments.prepared, arguments.rounds)
    show(tables(found))
    if arguments.out:
        append(results_file(arguments.out, CPU), this_machine(CPU), found)


if __name__ == "__main__":
    main()
