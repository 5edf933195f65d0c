"""Where memory goes: in a training step, measured or predicted, and in one's own code."""

from typing import TYPE_CHECKING, Any

from fastkd.memory.profiling import MemoryProfile, Use, profile
from fastkd.memory.snapshot import read_snapshot, recorded_step

if TYPE_CHECKING:
    from fastkd.memory.pair.pair import Pair, PairMemory

__all__ = [
    "MemoryProfile",
    "Pair",
    "PairMemory",
    "Use",
    "profile",
    "read_snapshot",
    "recorded_step",
]


def __getattr__(name: str) -> Any:
    """What needs packages that the losses alone do not."""
    if name in ("Pair", "PairMemory"):
        from fastkd.memory.pair import pair

        return getattr(pair, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
