"""Where memory goes: in a training step, measured or predicted, and in one's own code."""

from fastkd.memory.profiling import MemoryProfile, Use, profile
from fastkd.memory.snapshot import read_snapshot

__all__ = ["MemoryProfile", "Use", "profile", "read_snapshot"]
