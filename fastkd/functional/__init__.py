"""The losses as functions of tensors; every other way to compute them leads here."""

from fastkd.functional.attention import alignment_loss_from_maps, attention_alignment_loss
from fastkd.functional.calls import TokenLosses
from fastkd.functional.sparse import SparseTeacher
from fastkd.functional.tokens import linear_token_distillation_loss, token_distillation_loss

__all__ = [
    "SparseTeacher",
    "TokenLosses",
    "alignment_loss_from_maps",
    "attention_alignment_loss",
    "linear_token_distillation_loss",
    "token_distillation_loss",
]
