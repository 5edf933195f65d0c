"""The largest batch whose training step fits into a memory."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch

from fastkd.config.tree import Config, ModelConfig
from fastkd.errors import InputError
from fastkd.memory.step import cuda_formulas
from fastkd.memory.step.predict import predict_step
from fastkd.memory.step.report import StepMemory
from fastkd.memory.step.search import largest
from fastkd.memory.step.workload import Update, Workload

Progress = Callable[[int], None]


def _unseen(done: int) -> None:
    pass


def with_batch_tokens(config: Config, batch_tokens: int) -> Config:
    training = dataclasses.replace(config.training, batch_tokens=batch_tokens)
    return dataclasses.replace(config, training=training)


def predicted_steps(
    config: Config,
    work: Workload,
    teacher: ModelConfig | None,
    batch_tokens: int,
    device: str,
    limit: int | None = None,
    progress: Progress = _unseen,
    processes: int = 1,
) -> Iterator[tuple[Update, StepMemory]]:
    """The steps of those updates of the run that are candidates for the heaviest.

    limit, processes: see `predict_step`
    progress: called with 1 after each step
    """
    config = with_batch_tokens(config, batch_tokens)
    for update in work.heaviest(batch_tokens):
        memory = predict_step(config, work.vocabulary, teacher, update, device, limit, processes)
        progress(1)
        yield update, memory


def needed(memory: StepMemory) -> int:
    """What a device must have for the step: what it would show as in use."""
    return memory.allocator.get("device in use", memory.peak)


def available(device: torch.device | None) -> int:
    """Bytes that a step may take: all of a GPU, what is available of the CPU's memory."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    import psutil

    return int(psutil.virtual_memory().available)


def largest_batch(
    config: Config,
    work: Workload,
    teacher: ModelConfig | None,
    device: str,
    capacity: int,
    known: Mapping[int, int] | None = None,
    progress: Progress = _unseen,
    accuracy: float = 0.02,
    processes: int = 1,
) -> int | None:
    """The largest `batch_tokens` that is predicted to fit, within `accuracy`; None: not even one.

    On CUDA the allocator is replayed with the limit, so that cached segments go back before a step
    counts as too large. `known` gives what some batch sizes need, as far as it is known; `progress`
    is called with 1 after each predicted step.
    """
    limit = capacity - cuda_formulas.CONTEXT if device == "cuda" else None

    def taken(batch_tokens: int) -> int:
        if known and known.get(batch_tokens, capacity + 1) <= capacity:
            return known[batch_tokens]
        most = 0
        for _, memory in predicted_steps(
            config, work, teacher, batch_tokens, device, limit, progress, processes
        ):
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
