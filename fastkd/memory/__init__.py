"""Where memory goes: in a training step, measured or predicted, and in one's own code."""

from typing import TYPE_CHECKING, Any

from fastkd.memory.profiling import MemoryProfile, Use, profile
from fastkd.memory.snapshot import read_snapshot, recorded_step

if TYPE_CHECKING:
    from fastkd.memory.pair.pair import Pair

__all__ = ["MemoryProfile", "Pair", "Use", "profile", "read_snapshot", "recorded_step"]


def __getattr__(name: str) -> Any:
    """`Pair`, whose packages the losses alone do not need."""
    if name == "Pair":
        from fastkd.memory.pair.pair import Pair

        return Pair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
