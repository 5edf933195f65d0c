"""Target tokens a second of a training step, against a bare loop over torch.nn.Transformer.

    python -m benchmarks.training.throughput PREPARED [--rounds N] [--out FOLDER]

Ours trains on real batches of the corpus that `fastkd prepare` wrote to PREPARED, padding and
all: the trainer's own update, by linear cross-entropy with label smoothing. The bare loop is fed
with full batches without any padding, of one length for all sentences: torch.nn.Transformer
with its defaults and the same sizes, an embedding, an output projection, F.cross_entropy with
label smoothing and the same AdamW. All take turns step by step; the ratio of tokens a second is
the median over the rounds. The rows also go to `cpu.csv` in FOLDER.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.bench.command import results_file
from fastkd.bench.record import Row, append, this_machine
from fastkd.bench.run import figures
from fastkd.bench.tables import THROUGHPUT, tables
from fastkd.bench.turns import host_clock, in_turns
from fastkd.config.load import validate
from fastkd.config.tree import ModelConfig
from fastkd.data.batches import Batch, BatchPlan, collate
from fastkd.data.corpus import Corpus
from fastkd.data.tokenizer import Tokenizers
from fastkd.methods.objective import Objective
from fastkd.nn import Transformer
from fastkd.tables import show
from fastkd.terms.passes import Counts
from fastkd.train.update import Piece, Updater

CPU = torch.device("cpu")
TOKENS = 4096
SMOOTHING = 0.1
LEARNING_RATE = 1e-4
LENGTH = 32  # of each sentence in the bare loop's batches
SIZES = ModelConfig(encoder_layers=3, decoder_layers=3, width=256, ffn=1024, heads=4)
Norm = Literal["pre", "post"]
Step = Callable[[int], int]  # of a round's number; the target tokens trained on


class BareModel(nn.Module):
    """torch.nn.Transformer with what it lacks."""

    def __init__(self, vocabulary: int, norm: str) -> None:
        super().__init__()
        width = SIZES.width
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) * width**-0.5)
        self.transformer = nn.Transformer(
            width,
            SIZES.heads,
            SIZES.encoder_layers,
            SIZES.decoder_layers,
            SIZES.ffn,
            dropout=0.1,
            norm_first=norm == "pre",
            batch_first=True,
        )
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output.weight = self.embedding.weight
        self.future = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def forward(self, source: Tensor, decoder_input: Tensor) -> Tensor:
        embedded = [
            F.dropout(self.embedding(ids) + self.positions, 0.1) for ids in (source, decoder_input)
        ]
        hidden = self.transformer(*embedded, tgt_mask=self.future, tgt_is_causal=True)
        logits: Tensor = self.output(hidden)
        return logits


def bare_step(vocabulary: int, norm: str, dtype: torch.dtype) -> Step:
    model = BareModel(vocabulary, norm)
    optimizer = adamw(model)
    ids = torch.randint(5, vocabulary, (3, TOKENS // LENGTH, LENGTH))

    def step(number: int) -> int:
        source, decoder_input, target = ids
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(source, decoder_input)
            loss = F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), label_smoothing=SMOOTHING
            )
        loss.backward()
        optimizer.step()
        return int(target.numel())

    return step


def our_step(batches: list[Batch], size: int, norm: Norm, dtype: torch.dtype) -> Step:
    updater = our_updater(size, norm, str(dtype).removeprefix("torch."))

    def step(number: int) -> int:
        batch = batches[number % len(batches)]
        counts = Counts(len(batch.target), int(batch.source_lengths.sum()), batch.target_tokens)
        updater(number, [Piece.of(0, batch)], counts, epoch=1, rate=LEARNING_RATE)
        return batch.target_tokens

    return step


def our_updater(size: int, norm: Norm, precision: str) -> Updater:
    """Makes the trainer's own updates, with all that it checks and clips."""
    tree = {
        "run": "benchmark",
        "data": dict.fromkeys(("source", "target", "train", "dev", "prepared"), "benchmark"),
        "training": {"precision": precision},
        "losses": [{"name": "cross_entropy", "label_smoothing": SMOOTHING}],
    }
    config = validate(tree, "benchmark")
    config = dataclasses.replace(config, model=dataclasses.replace(SIZES, norm=norm))
    model = Transformer(config.model, size, size, pad_id=0)
    return Updater(config.training, model, Objective(config, 0), CPU)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)


def rows(prepared: str, rounds: int, norm: Norm) -> list[Row]:
    torch.manual_seed(1)
    tokenizers = Tokenizers.load(prepared)
    size = tokenizers.target.size
    corpus = Corpus(f"{prepared}/train")
    plan = BatchPlan(corpus.source_lengths, corpus.target_lengths, TOKENS)
    batches = [collate(corpus, ids, tokenizers) for ids in plan.epoch(1)[: rounds + 1]]
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        steps = {
            "fastkd": our_step(batches, size, norm, dtype),
            "torch.nn.Transformer": bare_step(size, norm, dtype),
        }
        tokens = {name: [0] * (rounds + 1) for name in steps}
        times = in_turns(
            {name: _counted(step, tokens[name]) for name, step in steps.items()}, rounds, CPU
        )
        # Seconds a token: steps differ in their tokens.
        costs = {
            name: [own / count for own, count in zip(seconds, tokens[name][1:], strict=True)]
            for name, seconds in times.items()
        }
        for name, seconds in times.items():
            relative = figures(costs[name], costs["torch.nn.Transformer"])["relative"]
            found.append(
                Row(
                    operation=THROUGHPUT,
                    shape=f"width={SIZES.width},V={size},tokens={TOKENS}",
                    dtype=str(dtype).removeprefix("torch."),
                    provider=name,
                    version="",
                    direction="step",
                    status="ok",
                    clock=host_clock(CPU).__name__,
                    tokens_per_second=1 / statistics.median(costs[name]),
                    **figures(seconds, ()) | {"relative": relative},
                )
            )
    return found


def _counted(step: Step, tokens: list[int]) -> Callable[[int], None]:
    def counted(number: int) -> None:
        tokens[number] = step(number)

    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prepared", help="folder that `fastkd prepare` wrote")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--norm", choices=["pre", "post"], default="pre")
    parser.add_argument("--out", type=Path, help="folder of results; none: only the table")
    options = parser.parse_args()
    found = rows(options.prepared, options.rounds, options.norm)
    show(tables(found))
    if options.out:
        append(results_file(options.out, CPU), this_machine(CPU), found)


if __name__ == "__main__":
    main()
