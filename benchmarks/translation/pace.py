"""How long a plan's rows take: processor seconds an update, and hours of training.

    python -m benchmarks.translation.pace PLAN.yaml [--rows NAME …] [--updates 20]

The rows' own trainers take turns, an update each, on the corpus that `fastkd prepare` wrote, with
random weights for models that are not trained yet. The ratio is that to the first row, of medians.
Rows that are trained in pieces are told by the piece.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.translation.plan import Plan, Trial, read_plan
from fastkd import tables
from fastkd.config.load import load_config
from fastkd.config.tree import ModelConfig
from fastkd.data.batches import BatchPlan, collate
from fastkd.data.prepare import Prepared, open_prepared
from fastkd.methods.objective import Objective
from fastkd.nn.build import build_model
from fastkd.nn.transformer import Transformer
from fastkd.train.update import Piece, Updater

CPU = torch.device("cpu")
Step = Callable[[], None]


def seconds_an_update(trials: list[Trial], updates: int) -> dict[str, float]:
    """Median processor seconds by row."""
    spent: dict[str, list[float]] = {trial.name: [] for trial in trials}
    steps = {trial.name: step_of(trial) for trial in trials}
    for turn in range(updates + 1):
        # There and back: whoever comes first in a turn finds the caches full of others' numbers.
        for name, step in list(steps.items())[:: 1 if turn % 2 else -1]:
            begin = time.process_time()
            step()
            if turn:  # the first one compiles and fills caches
                spent[name].append(time.process_time() - begin)
    return {name: statistics.median(times) for name, times in spent.items()}


def step_of(trial: Trial) -> Step:
    """The trainer's own updates of a row, on CPU."""
    config = trial.config
    prepared = open_prepared(load_config(trial.recipe, trial.plan.set))
    torch.manual_seed(trial.seed)
    model = build_model(config.model, prepared.tokenizers)
    objective = Objective(config, prepared.tokenizers.target.pad_id, _teacher(trial, prepared))
    objective.begin(model)
    updater = Updater(config.training, model, objective, CPU)
    corpus, training = prepared.train, config.training
    plan = BatchPlan(
        corpus.source_lengths, corpus.target_lengths, training.batch_tokens, training.seed
    )
    batches, done = iter(plan.epoch(1)), 0

    def step() -> None:
        nonlocal done
        ids, done = next(batches), done + 1
        batch = collate(corpus, ids, prepared.tokenizers, config.model.decoder_start)
        counts = objective.counts(corpus, ids, done)
        updater(done, [Piece.of(0, batch)], counts, epoch=1, rate=training.optimizer.lr)

    return step


def _teacher(trial: Trial, prepared: Prepared) -> tuple[Transformer, ModelConfig] | None:
    """Of the sizes of the row that teaches; only its time counts."""
    if trial.config.teacher is None:
        return None
    config = (trial.of(trial.row.taught) if trial.row.taught else trial.plan.teacher).config
    return build_model(config.model, prepared.tokenizers), config.model


def table(plan: Plan, trials: list[Trial], found: dict[str, float]) -> tables.Table:
    first = found[trials[0].name]
    lines, hours = [], 0.0
    for trial in trials:
        seeds = len(trial.row.seeds or plan.seeds)
        updates, each = trial.config.training.updates, found[trial.name]
        own = each * updates / 3600
        hours += own * seeds
        pieces = "a piece" if trial.row.pieces else ""
        lines.append(
            [
                trial.name,
                f"{each:.3f}",
                f"{each / first:.2f}",
                f"{updates:,}",
                f"{own:.2f}",
                str(seeds),
                pieces,
            ]
        )
    header = ("row", "s an update", "ratio", "updates", "hours a seed", "seeds", "")
    remarks = [
        f"{hours:.1f} hours of one core in all, a piece each counted once; scoring comes on top"
    ]
    return tables.Table(plan.corpus, header, lines, remarks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rows", nargs="+", default=[])
    parser.add_argument("--updates", type=int, default=20)
    options = parser.parse_args()
    plan = read_plan(options.plan)
    trials = list({trial.name: trial for trial in plan.trials(tuple(options.rows))}.values())
    tables.show([table(plan, trials, seconds_an_update(trials, options.updates))])


if __name__ == "__main__":
    main()
