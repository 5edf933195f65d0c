"""What every launcher needs."""

import os

import torch
import triton
import triton.language as tl

# Triton reads it when a kernel is defined; the launchers have to agree with the kernels.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

TRITON_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


def unsupported(*tensors: torch.Tensor | None, anywhere: bool = False) -> str | None:
    """Why Triton kernels cannot take these tensors, or None; `anywhere`: on a CPU too."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in TRITON_TYPES:
            return f"the kernels take float16, bfloat16 and float32, not {tensor.dtype}"
        if not (tensor.is_cuda or anywhere or INTERPRETED):
            return "on a CPU the kernels need TRITON_INTERPRET=1 from the start of the process"
    return None


def ceil_div(amount: int, size: int) -> int:
    return -(-amount // size)


def block_size(extent: int, least: int = 16, most: int = 1 << 30) -> int:
    """The power of two in least..most that holds `extent`, or `most`."""
    return min(max(triton.next_power_of_2(max(extent, 1)), least), most)


def stride_unit(*strides: int) -> int:
    """The largest power of two up to 16 that divides every stride.

    Strides are passed in this unit, a compile-time constant: loads stay vectorised without Triton
    specialising (and recompiling) on the divisibility of sizes that change from batch to batch.
    """
    combined = 16
    for stride in strides:
        combined |= stride
    return combined & -combined


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for kernels to fill; tests replace it to see that nothing unwritten is read."""
    return torch.empty(shape, dtype=dtype, device=device)
