"""Queries and keys of a model's attention layers: as models hand them to losses, and recorded."""

from fastkd.taps.recording import Projections, Recorded, record
from fastkd.taps.tap import AttentionTap, AttentionTaps

__all__ = ["AttentionTap", "AttentionTaps", "Projections", "Recorded", "record"]
