"""The losses' configurations: what trainers, runs and integrations are told to train by.

from fastkd.losses import A2D, CrossEntropy, WordKD
"""

from fastkd.config.losses import (
    A2D,
    CrossEntropy,
    DiMS,
    HiddenStates,
    Length,
    LossConfig,
    MaskedCrossEntropy,
    TieKD,
    WordKD,
)

__all__ = [
    "A2D",
    "CrossEntropy",
    "DiMS",
    "HiddenStates",
    "Length",
    "LossConfig",
    "MaskedCrossEntropy",
    "TieKD",
    "WordKD",
]
