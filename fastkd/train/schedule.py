"""Learning rates over updates, the first update being 1."""

import math

from fastkd.config.tree import OptimizerConfig


def learning_rate(config: OptimizerConfig, update: int, updates: int) -> float:
    """`config.lr` times a warm-up from 0, then the schedule; `updates` is the planned total.

    inverse_sqrt: sqrt(warmup / update); cosine: from 1 to 0 at `updates`; constant: 1.
    """
    if update < config.warmup:
        return config.lr * update / config.warmup
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(config.warmup / update)
    if config.schedule == "cosine":
        done = (update - config.warmup) / max(1, updates - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.lr
