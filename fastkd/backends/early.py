"""Gradients that are computed with the loss, before what follows the loss is known."""

import torch


def early_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 would lose small gradients before a loss scale multiplies them."""
    return torch.float32 if dtype == torch.float16 else dtype
