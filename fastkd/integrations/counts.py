"""Sizes of an update of Transformers models, as a tensor that processes can sum."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.integrations.passes import IGNORED, Inputs, is_encoder_decoder, predicted
from fastkd.terms.passes import Counts


def counted(model: nn.Module, batches: Iterable[Inputs]) -> Tensor:
    """(5,): batches, sentences, tokens of the encoder, tokens of the decoder, predicted labels."""
    rows = [_of(model, batch) for batch in batches]
    return torch.stack(rows).sum(0) if rows else torch.zeros(5)


def as_counts(sizes: Tensor) -> Counts:
    """What `counted` gives, as the losses take it; nothing is divided by less than 1."""
    _, sentences, source, target, labels = sizes.clamp(min=1).unbind()
    return Counts(sentences, source, target, labels)


def _of(model: nn.Module, inputs: Inputs) -> Tensor:
    if inputs.get("labels") is None:
        raise InputError("labels: expected in every batch")
    labels, mask = inputs["labels"], inputs.get("attention_mask")
    decoder_mask = inputs.get("decoder_attention_mask")
    given = (mask if mask is not None else torch.ones_like(inputs["input_ids"])) != 0
    read = (labels != IGNORED) if decoder_mask is None else decoder_mask != 0
    sizes: list[Any] = [
        torch.tensor(1),
        torch.tensor(len(labels)),
        given.sum(),
        (read if is_encoder_decoder(model) else given).sum(),
        (predicted(model, labels) != IGNORED).sum(),
    ]
    return torch.stack([size.to(labels.device, torch.float32) for size in sizes])
