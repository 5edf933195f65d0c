"""The largest batch whose training step fits into a memory."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable

from fastkd.config.tree import Config, ModelConfig
from fastkd.errors import InputError
from fastkd.memory import cuda_formulas
from fastkd.memory.allocator import OutOfMemory
from fastkd.memory.predict import predict_step
from fastkd.memory.report import StepMemory
from fastkd.memory.workload import Update, Workload

_ENOUGH = 1 << 26  # tokens: more than anybody means by a batch


def with_batch_tokens(config: Config, batch_tokens: int) -> Config:
    training = dataclasses.replace(config.training, batch_tokens=batch_tokens)
    return dataclasses.replace(config, training=training)


def heaviest_step(
    config: Config,
    work: Workload,
    teacher: ModelConfig | None,
    batch_tokens: int,
    device: str,
    limit: int | None = None,
) -> tuple[Update, StepMemory]:
    """The predicted step of the update that takes the most, among the candidates of the run."""
    config = with_batch_tokens(config, batch_tokens)
    results = [
        (update, predict_step(config, work.vocabulary, teacher, update, device, limit))
        for update in work.heaviest(batch_tokens)
    ]
    return max(results, key=lambda result: needed(result[1]))


def needed(memory: StepMemory) -> int:
    """What a device must have for the step: what it would show as in use."""
    return memory.allocator.get("device in use", memory.peak)


def largest_batch(
    config: Config,
    work: Workload,
    teacher: ModelConfig | None,
    device: str,
    capacity: int,
    accuracy: float = 0.02,
) -> int | None:
    """The largest `batch_tokens` that is predicted to fit, within `accuracy`; None: not even one.

    On CUDA the allocator is replayed with the limit, so that cached segments go back before a step
    counts as too large.
    """
    limit = capacity - cuda_formulas.CONTEXT if device == "cuda" else None

    @functools.cache
    def taken(batch_tokens: int) -> float:
        try:
            memory = heaviest_step(config, work, teacher, batch_tokens, device, limit)[1]
        except OutOfMemory:
            return math.inf
        return needed(memory)

    smallest = _smallest(work, config)
    if taken(smallest) > capacity:
        return None
    return largest(taken, smallest, max(config.training.batch_tokens, smallest), capacity, accuracy)


def _smallest(work: Workload, config: Config) -> int:
    """About the smallest `batch_tokens` that the run's sentences allow."""
    for power in range(24):
        with contextlib.suppress(InputError):
            work.heaviest(1 << power)
            return 1 << power
    return config.training.batch_tokens


def largest(
    taken: Callable[[int], float], low: int, guess: int, capacity: float, accuracy: float
) -> int:
    """The largest n >= `low` with taken(n) <= capacity, but for `accuracy`; taken rises with n.

    `low` is known to fit. Memory is nearly a straight line over n, so the next n to try is where
    the line through the best known points meets the capacity.
    """
    high: int | None = None
    while True:
        if taken(guess) <= capacity:
            low = max(low, guess)
        else:
            high = guess if high is None else min(high, guess)
        if high is not None and high - low <= max(accuracy * low, 1):
            return low
        if low >= _ENOUGH:
            return low
        guess = _next(taken, low, high, capacity, accuracy)


def _next(
    taken: Callable[[int], float], low: int, high: int | None, capacity: float, accuracy: float
) -> int:
    margin = max(int(accuracy * low / 2), 1)
    other = high if high is not None and math.isfinite(taken(high)) else max(low // 2, 1)
    try:
        slope = (taken(low) - taken(other)) / (low - other)
    except (InputError, ZeroDivisionError):
        slope = 0
    crossing = low + (capacity - taken(low)) / slope if slope > 0 else 2.0 * low
    if high is None:
        return int(min(max(crossing, low + margin), 64 * low))
    # Between the two, and by half now and then, so that a curve cannot hold the search up.
    inside = min(max(int(crossing), low + margin), high - margin)
    return inside if low < inside < high else (low + high) // 2
