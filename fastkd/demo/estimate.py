"""How long training of several recipes will take on this machine, before it begins."""

import time
from collections.abc import Callable, Mapping

from fastkd.config.tree import Config, ModelConfig
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import workload
from fastkd.runs.device import pick_device

_PLACES = (1 / 6, 3 / 6, 5 / 6)  # of the updates that are timed: losses may change with them
_BESIDE = 1.25  # what validation, checkpoints and the test set take beside the updates


def estimated_seconds(
    configs: Mapping[str, Config], teacher: ModelConfig, say: Callable[[str], None]
) -> float:
    """From updates of each that are made here, of random weights on prepared data.

    teacher: the model of those that name a teacher
    """
    say(f"timing a few updates of {len(configs)} models")
    return _BESIDE * sum(_training(config, teacher) for config in configs.values())


def _training(config: Config, teacher: ModelConfig) -> float:
    work = workload(config)
    update = work.heaviest(config.training.batch_tokens)[-1]
    device = pick_device(config.training.device)
    step = TrainingStep(config, work.vocabulary, teacher if config.teacher else None, device)
    one = step.of(update)
    one()  # compiles and allocates
    seconds = []
    for place in _PLACES:
        start = time.perf_counter()
        one(round(place * config.training.updates))
        seconds.append(time.perf_counter() - start)
    return config.training.updates * sum(seconds) / len(seconds)


def in_words(seconds: float) -> str:
    """As one says it: "40 seconds", "4 minutes"."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} seconds"
    return f"{seconds / 60:.0f} minutes"
