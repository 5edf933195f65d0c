"""The losses as functions of tensors; every other way to compute them leads here."""

from fastkd.functional.attention import alignment_loss_from_maps, attention_alignment_loss

__all__ = ["alignment_loss_from_maps", "attention_alignment_loss"]
