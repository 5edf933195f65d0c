"""Sizes of an update of Transformers models, as a tensor that processes can sum."""

from typing import Any

import torch
from torch import Tensor

from fastkd.integrations.models import IGNORED, Inputs, LanguageModel
from fastkd.terms.passes import Counts

LABELS, REFUSED = 4, 5  # where in the sizes of an update


def counted(model: LanguageModel, inputs: Inputs) -> Tensor:
    """(6,): batches, sentences, tokens of the encoder, tokens of the decoder, predicted labels, and
    0, the batches that were refused.

    The tokens of images and sound without a mask are NaN: nobody knows them before the pass.
    """
    labels: Tensor = inputs["labels"]
    decoder_mask = inputs.get("decoder_attention_mask")
    given = _given(inputs)
    read = ((labels != IGNORED) if decoder_mask is None else decoder_mask != 0).sum()
    sizes: list[Any] = [
        torch.tensor(1),
        torch.tensor(len(labels)),
        given,
        read if model.is_encoder_decoder else given,
        (model.predicted(labels) != IGNORED).sum(),
        torch.tensor(0),
    ]
    return torch.stack([size.to(labels.device, torch.float32) for size in sizes])


def refused(device: torch.device) -> Tensor:
    """The sizes of a batch that was refused."""
    sizes = torch.zeros(REFUSED + 1, device=device)
    sizes[REFUSED] = 1
    return sizes


def device_of(batches: list[Inputs], model: LanguageModel) -> torch.device:
    """Where sizes lie that were not counted: with the labels; without a batch, with the model."""
    labels = [inputs.get("labels") for inputs in batches]
    given = [value for inputs in batches for value in inputs.values()]
    found = (tensor.device for tensor in (*labels, *given) if isinstance(tensor, Tensor))
    return next(found, model.head.device)


def as_counts(sizes: Tensor) -> Counts:
    """What `counted` gives, as the losses take it; nothing is divided by less than 1."""
    _, sentences, source, target, labels = sizes[:REFUSED].clamp(min=1).unbind()
    return Counts(sentences, source, target, labels)


def _given(inputs: Inputs) -> Tensor:
    if (mask := inputs.get("attention_mask")) is not None:
        tokens: Tensor = (mask != 0).sum()
        return tokens
    for name in ("input_ids", "inputs_embeds"):
        if (given := inputs.get(name)) is not None:
            return torch.tensor(given.shape[0] * given.shape[1])
    return torch.tensor(float("nan"))
