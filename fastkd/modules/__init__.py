"""The losses as modules: what they hold is learned, the arithmetic is in `fastkd.functional`."""

from fastkd.modules.attention import AlignmentLosses, AlignToDistill, AttentionAlignment
from fastkd.modules.tokens import TokenDistillation

__all__ = ["AlignToDistill", "AlignmentLosses", "AttentionAlignment", "TokenDistillation"]
