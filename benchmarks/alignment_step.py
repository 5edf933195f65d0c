"""What attention alignment adds to a training step that distils words already.

    python -m benchmarks.alignment_step PREPARED [--recipe NAME] [--rounds N] [--threads N]

Updates have the sentence lengths of the corpus that `fastkd prepare` wrote to PREPARED, cut as the
recipe cuts them; weights and pieces are random. All steps take turns, update by update, each
beginning a round in turn, so that whatever else the machine does falls on all of them; `cost` is
the median over the rounds of a step's time over that of word-level distillation. With one thread
it is processor time, which other work hardly touches.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.attention_cpu import chosen
from fastkd.bench.tables import text_table
from fastkd.config.load import load_config
from fastkd.config.tree import A2D
from fastkd.data.batches import BatchPlan
from fastkd.data.corpus import Corpus
from fastkd.data.tokenizer import Tokenizers
from fastkd.memory.step import TrainingStep
from fastkd.memory.workload import Update, Vocabulary

BASE = "word KD"
CPU = torch.device("cpu")
BACKENDS = ("torch", "torch without a compiler", "reference")


def steps(recipe: str, vocabulary: Vocabulary) -> dict[str, tuple[str, TrainingStep]]:
    """By name: the candidate that computes it, and the step."""
    teacher = load_config(f"{recipe}/teacher").model
    word, align = load_config(f"{recipe}/word_kd"), load_config(f"{recipe}/a2d")
    found = {BASE: ("torch", TrainingStep(word, vocabulary, teacher, CPU))}
    for kind in ("mixture", "row", "map"):
        losses = [
            dataclasses.replace(loss, normalization=kind) if isinstance(loss, A2D) else loss
            for loss in align.losses
        ]
        for candidate in BACKENDS:
            training = dataclasses.replace(align.training, backend=candidate.split()[0])
            config = dataclasses.replace(align, losses=losses, training=training)
            step = TrainingStep(config, vocabulary, teacher, CPU)
            found[f"A2D {kind}, {candidate}"] = candidate, step
    return found


def seconds(candidate: str, step: TrainingStep, update: Update, pieces: list) -> float:
    clock: Callable[[], float] = (
        time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    )
    with chosen(candidate):
        begin = clock()
        step(update, pieces)
        return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prepared")
    parser.add_argument("--recipe", default="wmt22-de-dsb")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizers = Tokenizers.load(arguments.prepared)
    vocabulary = Vocabulary.of_sizes(tokenizers.source.size, tokenizers.target.size)
    corpus = Corpus(f"{arguments.prepared}/train")
    tokens = load_config(f"{arguments.recipe}/a2d").training.batch_tokens
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, tokens)
    updates = [
        Update(plan.source_lengths[ids], plan.target_lengths[ids])
        for ids in plan.epoch(1)[: arguments.rounds + 2]
    ]
    competing = steps(arguments.recipe, vocabulary)
    times: dict[str, list[float]] = {name: [] for name in competing}
    order = list(competing)
    for update in updates:
        pieces = update.pieces(1, vocabulary)
        for name in order:
            times[name].append(seconds(*competing[name], update, pieces))
        order = order[1:] + order[:1]
    lines = []
    for name, measured in times.items():
        later = list(zip(measured[2:], times[BASE][2:], strict=True))
        cost = statistics.median(own / base for own, base in later)
        lines.append((name, f"{1e3 * statistics.median(measured[2:]):.0f}", f"{cost - 1:+.1%}"))
    print(text_table(("step", "ms", "cost"), lines))


if __name__ == "__main__":
    main()
