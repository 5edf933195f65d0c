"""What a step takes on CUDA beyond the tensors that its operators return on a CPU.

The formulas follow PyTorch's source and this package's launchers; no GPU has confirmed them yet.
"""

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any, Literal

import torch

from fastkd.memory.step.allocator import MIB, CachingAllocator, OutOfMemory, round_up
from fastkd.memory.step.predictor import Predictor
from fastkd.memory.tracker import Block

Backend = Literal["triton", "torch", "reference"]
_FASTEST_FIRST: tuple[Backend, ...] = ("triton", "torch", "reference")
# Context, loaded kernels and libraries: what a process holds outside the allocator.
CONTEXT = 600 * MIB
# cuBLAS's workspace, taken from the allocator: 4096 KiB × 8 on Hopper, less elsewhere.
CUBLAS_WORKSPACE = 32 * MIB


class CudaPredictor(Predictor):
    """Adds what CUDA's kernels take inside to what the operators return.

    Code that asks a CPU tensor does not wait to ask a GPU: it is prepared for the rare case.
    """

    rare = True

    def workspace(self, func: Any, args: tuple[Any, ...]) -> int:
        return workspace(func._schema.name, args)


def workspace(operator: str, args: tuple[Any, ...]) -> int:
    if "scaled_dot_product" in operator and operator.endswith("_backward"):
        return attention_backward_workspace(args[1])
    if operator.startswith("fastkd::align_queries"):
        return attention_scratch(*args[1:4] if operator.endswith("_bwd") else args[:3])
    if operator == "fastkd::linear_token_losses":
        return token_chunk(args[0], args[1], args[4])
    return 0


def attention_scratch(query: torch.Tensor, key: torch.Tensor, teacher: torch.Tensor) -> int:
    """The maps of a chunk: of all sentences, or as many as fit the bound."""
    plan = importlib.import_module("fastkd_kernels.attention.plan")
    maps = query.shape[1] + teacher.shape[1]
    cells = query.shape[0] * query.shape[2] * plan.row_pitch(key.shape[2])
    cell_bytes = 2 if query.dtype == torch.bfloat16 else 4
    return int(min(maps * cells * cell_bytes, plan.SCRATCH_BYTES))


def token_chunk(hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor | None) -> int:
    """A chunk of both models' logits: hidden (rows, D), weight and teacher (V, D)."""
    chunk_rows = importlib.import_module("fastkd_kernels.tokens.linear").chunk_rows
    per_row = weight.shape[0] * hidden.element_size()
    if teacher is not None:
        per_row += teacher.shape[0] * teacher.element_size()
    return int(chunk_rows(hidden.shape[0], per_row)) * per_row


def attention_backward_workspace(query: torch.Tensor) -> int:
    """Flash attention adds up the queries' gradient in float32: (B, heads, Tq, head size).

    Tq is rounded up to 128, the head size to 32; one more float32 a row holds Σ dO·O.
    """
    batch, heads, queries, size = query.shape
    rows = batch * heads * round_up(queries, 128)
    return 4 * rows * (round_up(size, 32) + 1)


def best_backend() -> Backend:
    """The backend that `auto` means on CUDA, of those that are installed."""
    for backend in _FASTEST_FIRST:
        modules = [f"fastkd.backends.{family}.{backend}" for family in ("attention", "tokens")]
        with contextlib.suppress(ImportError):
            for module in modules:
                importlib.import_module(module)
            return backend
    return "reference"


def replay(blocks: Sequence[Block], limit: int | None = None) -> dict[str, int]:
    """The caching allocator's figures for these tensors, in the order of their lives.

    It may reserve `limit` bytes; where they are too few, the figures are those without a limit.
    """
    try:
        allocator = _replayed(blocks, limit)
    except OutOfMemory:
        allocator = _replayed(blocks, None)
    return {
        "peak allocated": allocator.peak_allocated,
        "peak reserved": allocator.peak_reserved,
        "device in use": allocator.peak_reserved + CONTEXT,
    }


def _replayed(blocks: Sequence[Block], limit: int | None) -> CachingAllocator:
    allocator = CachingAllocator(limit)
    allocator.allocate(CUBLAS_WORKSPACE)
    moments = []
    for block in blocks:
        if block.size:
            moments.append((block.birth, block))
            if block.death is not None:
                moments.append((block.death, block))
    held: dict[int, Any] = {}
    for time, block in sorted(moments, key=lambda moment: moment[0]):
        if time == block.birth:
            held[id(block)] = allocator.allocate(block.size)
        else:
            allocator.free(held.pop(id(block)))
    return allocator
