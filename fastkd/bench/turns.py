"""Times of steps that take turns, so that whatever else the machine does falls on all of them."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def host_clock(device: torch.device) -> Callable[[], float]:
    """Of one CPU thread its processor time, which other work hardly touches; else real time."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def in_turns(
    steps: Mapping[Key, Callable[[int], object]],
    rounds: int,
    device: torch.device,
    warmup: int = 1,
) -> dict[Key, list[float]]:
    """Seconds of every step(number of the round), round by round; each begins a round in turn.

    The first `warmup` rounds are not counted.
    """
    now = host_clock(device)
    times: dict[Key, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for number in range(warmup + rounds):
        for name in order:
            _wait(device)
            start = now()
            steps[name](number)
            _wait(device)
            times[name].append(now() - start)
        order = order[1:] + order[:1]
    return {name: seconds[warmup:] for name, seconds in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
