"""A batch of random text, sound or images, as models of Transformers read it."""

from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import InputError

_BINS = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "d_model")


def random_batch(
    student: nn.Module,
    teacher: nn.Module | None,
    batch: int,
    length: int,
    target_length: int | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """What both models are called with, and labels.

    length: pieces of a source; of sound its frames or samples, but where a model takes only one
        number of them, as Whisper does, that
    """
    models = [student] if teacher is None else [student, teacher]
    config: Any = student.config
    size = min(int(_text(model).vocab_size) for model in models)
    target = torch.randint(size, (batch, target_length or length), device=device)
    reads = str(getattr(student, "main_input_name", "input_ids"))
    if reads == "input_features":
        return {reads: _sound(student, batch, length, device), "labels": target}
    if reads == "input_values":
        return {reads: torch.randn(batch, length, device=device), "labels": target}
    if reads == "pixel_values" and config.is_encoder_decoder:
        side = getattr(config.encoder, "image_size", 224)
        sides = (side, side) if isinstance(side, int) else tuple(side)
        return {reads: torch.randn(batch, 3, *sides, device=device), "labels": target}
    source = torch.randint(size, (batch, length), device=device)
    labels = target if config.is_encoder_decoder else source
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels}


def _sound(model: nn.Module, batch: int, length: int, device: torch.device) -> Tensor:
    """(B, frames, bins), transposed for Whisper."""
    config: Any = model.config
    encoder = getattr(config, "encoder_config", config)
    bins = next((found for name in _BINS if (found := getattr(encoder, name, None))), None)
    if bins is None:
        raise InputError(
            f"{type(model).__name__}: its configuration does not tell the width of a frame of "
            f"sound; expected {', '.join(_BINS[:-1])} or {_BINS[-1]} in it"
        )
    if type(model).__name__.startswith("Whisper"):
        return torch.randn(batch, bins, 2 * config.max_source_positions, device=device)
    return torch.randn(batch, length, bins, device=device)


def _text(model: nn.Module) -> Any:
    """The configuration that has the vocabulary."""
    config: Any = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
