"""The largest batch whose training step fits into a memory."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping

from fastkd.config.tree import Config, ModelConfig
from fastkd.errors import InputError
from fastkd.memory import cuda_formulas
from fastkd.memory.predict import predict_step
from fastkd.memory.report import StepMemory
from fastkd.memory.workload import Update, Workload

_ENOUGH = 1 << 26  # tokens: more than anybody means by a batch

Progress = Callable[[int], None]


def _unseen(done: int) -> None:
    pass


def with_batch_tokens(config: Config, batch_tokens: int) -> Config:
    training = dataclasses.replace(config.training, batch_tokens=batch_tokens)
    return dataclasses.replace(config, training=training)


def heaviest_step(
    config: Config,
    work: Workload,
    teacher: ModelConfig | None,
    batch_tokens: int,
    device: str,
    progress: Progress = _unseen,
) -> tuple[Update, StepMemory]:
    """The predicted step of the update that takes the most, among the candidates of the run.

    `progress` is called with 1 after each predicted step.
    """
    config, results = with_batch_tokens(config, batch_tokens), []
    for update in work.heaviest(batch_tokens):
        memory = predict_step(config, work.vocabulary, teacher, update, device)
        results.append((update, memory))
        progress(1)
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
    known: Mapping[int, int] | None = None,
    progress: Progress = _unseen,
    accuracy: float = 0.02,
) -> int | None:
    """The largest `batch_tokens` that is predicted to fit, within `accuracy`; None: not even one.

    On CUDA the allocator is replayed with the limit, so that cached segments go back before a step
    counts as too large. `known` gives what some batch sizes need, where that is known to fit;
    `progress` is called with 1 after each predicted step.
    """
    limit = capacity - cuda_formulas.CONTEXT if device == "cuda" else None

    def taken(batch_tokens: int) -> int:
        if known and known.get(batch_tokens, capacity + 1) <= capacity:
            return known[batch_tokens]
        most, sized = 0, with_batch_tokens(config, batch_tokens)
        for update in work.heaviest(batch_tokens):
            memory = predict_step(sized, work.vocabulary, teacher, update, device, limit)
            progress(1)
            most = max(most, needed(memory))
            if most > capacity:
                break
        return most

    smallest = _smallest(work, config)
    guess = max(config.training.batch_tokens, smallest)
    return largest(taken, smallest, guess, capacity, accuracy)


def _smallest(work: Workload, config: Config) -> int:
    """About the smallest `batch_tokens` that the run's sentences allow."""
    for power in range(24):
        with contextlib.suppress(InputError):
            work.heaviest(1 << power)
            return 1 << power
    return config.training.batch_tokens


def largest(
    taken: Callable[[int], float], smallest: int, guess: int, capacity: float, accuracy: float
) -> int | None:
    """The largest n >= `smallest` with taken(n) <= capacity, but for `accuracy`; None: no n.

    taken(n) rises with n, nearly in a straight line. Each call may take seconds, so few are made:
    about four where it is one, and never more than a search by halves would need, times three.
    """
    known: dict[int, float] = {}
    low, high = smallest - 1, _ENOUGH + 1  # fits or is no n; does not fit, or nobody means it
    while high - low > max(accuracy * low, 1):
        known[guess] = taken(guess)
        if known[guess] <= capacity:
            low = guess
        else:
            high = guess
        guess = _next(known, low, high, capacity, accuracy)
    return low if low >= smallest else None


def _next(known: dict[int, float], low: int, high: int, capacity: float, accuracy: float) -> int:
    """Where to look next, inside of `low` and `high` while there is anything inside."""
    step = max(accuracy * low, 1)
    if high not in known:
        place = min(max(_crossing(known, capacity), low + step), 64 * max(low, 1))
    elif low in known and len(known) % 3 == 0:
        place = math.sqrt(low * high)  # a curve or a leap must not hold the search up
    else:
        place = _crossing({n: known[n] for n in (low, high) if n in known}, capacity)
        # A step beyond the crossing ends the search if it is right; before one, it is prepared.
        if place - low < step:
            place = low + step
        elif high - place < step:
            place = high - step
        else:
            place *= 1 - accuracy / 3
    return int(min(max(place, low + 1), high - 1))


def _crossing(known: dict[int, float], capacity: float) -> float:
    """Where the line through the two largest points meets the capacity."""
    if len(known) == 1:
        ((n, memory),) = known.items()
        return n * capacity / memory
    one, two = sorted(known)[-2:]
    slope = (known[two] - known[one]) / (two - one)
    return one + (capacity - known[one]) / slope if slope > 0 else 2.0 * two
