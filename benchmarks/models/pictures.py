"""Batches with images for any class that reads them: what its processor would make, by trial."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_TOKENS = (16, 4, 1, 17, 8, 2, 32, 64, 18, 20, 34)  # of an image, the usual ones first
_GRIDS = {"image_grid_thw", "grid_thws", "spatial_shapes"}
PIXELS = {"pixel_values", "flattened_patches"}
_MARKS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def with_pictures(model: Any, text: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """`text` with an image a row that changes the model's loss; None where none was found."""
    config = model.config
    token = next((found for name in _MARKS if (found := getattr(config, name, None))), None)
    for pixels in _pixels(model):
        for inputs in _candidates(model, text, pixels, token):
            try:
                losses = [float(model(**batch).loss) for batch in (inputs, _other(inputs))]
            except Exception as error:
                if "token" in str(error) or "scatter" in str(error):
                    continue  # another number of tokens
                break  # another form of image
            if losses[0] != losses[1] and losses[0] == losses[0]:
                return inputs
    return None


def _other(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + 0.5 if k in PIXELS else v for k, v in inputs.items()}


def _candidates(
    model: Any, text: dict[str, Tensor], pixels: dict[str, Tensor], token: int | None
) -> Iterator[dict[str, Tensor]]:
    """With each usual number of an image's tokens, and what tells them from text."""
    known = inspect.signature(model.forward).parameters
    if not pixels.keys() <= known.keys() or _GRIDS & known.keys() - pixels.keys():
        return
    if token is None:
        yield text | pixels
        return
    for count in _TOKENS:
        inputs = _marked(text, token, count) | pixels
        kinds = (inputs["input_ids"] == token).long()
        names = [name for name in ("mm_token_type_ids", "token_type_ids") if name in known]
        yield inputs | dict.fromkeys(names, kinds)


def _marked(text: dict[str, Tensor], token: int, count: int) -> dict[str, Tensor]:
    """The text with so many tokens of an image behind its first."""

    def wider(values: Tensor, fill: int) -> Tensor:
        return torch.cat([values[:, :1], values.new_full((2, count), fill), values[:, 1:]], 1)

    ids, mask = wider(text["input_ids"], token), wider(text["attention_mask"], 1)
    return {"input_ids": ids, "attention_mask": mask, "labels": wider(text["labels"], -100)}


def _pixels(model: Any) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    vision = getattr(model.config, "vision_config", None) or model.config
    size = _one(getattr(vision, "image_size", None) or 32)
    patch = _one(getattr(vision, "patch_size", None) or 8)
    whole = torch.randn(2, 3, size, size, generator=generator)
    sizes = torch.tensor([[size, size]] * 2)
    yield {"pixel_values": whole}
    yield {"pixel_values": whole, "image_sizes": sizes}
    yield {"pixel_values": whole[:, None]}
    yield {"pixel_values": whole[:, None], "image_sizes": sizes}
    tiles = torch.randn(2, 2, 3, size, size, generator=generator)
    yield {"pixel_values": tiles, "image_sizes": sizes}
    for frames in dict.fromkeys((getattr(vision, "temporal_patch_size", None) or 1, 1, 2)):
        flat = torch.randn(2 * 16, 3 * frames * patch * patch, generator=generator)
        for name in ("image_grid_thw", "grid_thws"):
            yield {"pixel_values": flat, name: torch.tensor([[1, 4, 4]] * 2)}
    yield {"pixel_values": whole, "bbox": torch.zeros(2, 12, 4)}
    yield {"pixel_values": whole[:, None], "image_attention_mask": torch.ones(2, 12, 1).long()}
    ids = torch.randint(3, 50, (2, 5), generator=generator)
    asked = {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
    yield {"pixel_values": whole} | asked
    yield {"pixel_values": whole[:, None].repeat(1, 4, 1, 1, 1)} | asked
    places = torch.arange(12).expand(2, 12) < 4
    yield {"pixel_values": whole, "image_embeds_position_mask": places}
    patches = torch.randn(2, 16, 2 + 3 * patch * patch, generator=generator)
    yield {"flattened_patches": patches.abs()}
    flat = torch.randn(2, 16, 3 * patch * patch, generator=generator)
    shapes = {"spatial_shapes": torch.tensor([[4, 4]] * 2)}
    mask = {"pixel_attention_mask": torch.ones(2, 16).long()}
    yield {"pixel_values": flat} | shapes | mask


def _one(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
