"""Where a run computes, and in which precision."""

import contextlib

import torch

from fastkd.errors import InputError


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device: expected a CUDA device, but PyTorch sees none here")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """A context for forward passes: bfloat16 autocast where asked for and, for `auto`, fast."""
    if precision == "auto":
        precision = "bfloat16" if _fast_bfloat16(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
