"""A model within what others put around it, and what makes its logits."""

from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what PEFT and torch.compile put around it."""
    while True:
        compiled = model._modules.get("_orig_mod")
        # Asked of its class, as PEFT's hand on what they lack.
        adapted = getattr(type(model), "get_base_model", None)
        if compiled is not None:
            model = compiled
        elif adapted is not None:
            model = adapted(model)
        else:
            return model


def projection_of(model: Any) -> Any:
    """What makes a model's logits, as it or its one part that tells some tells; or None."""
    if model is None:
        return None
    told = _told(model)
    if told is not None:
        return told
    # Models of images and text may leave it to the text's.
    children = unwrapped(model).children()
    parts = [part for child in children if (part := _told(child)) is not None]
    return parts[0] if len(parts) == 1 else None


def _told(model: Any) -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()
