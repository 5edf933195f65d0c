"""Tile sizes by shape class: a bounded table, so that no new length is ever compiled anew."""

from dataclasses import dataclass

import torch
import triton.language as tl

from fastkd_kernels.common import INTERPRETED, TRITON_TYPES, block_size

HEADS = (16, 32, 64, 128, 256, 512)  # student maps that a program mixes at once
KEYS = (16, 32, 64, 128)  # keys of a block
SIZES = (16, 32, 64, 128, 256)  # head sizes


@dataclass(frozen=True)
class Precision:
    """How products are taken and what the scratch holds.

    bfloat16 inputs multiply as bfloat16. The maps of float16 inputs are kept and multiplied at
    float32's range (tf32, whose fraction is as long as float16's). float32 is never rounded.
    """

    scratch: torch.dtype
    operand: tl.dtype
    dot: str


def precision(dtype: torch.dtype) -> Precision:
    if dtype == torch.bfloat16 and not INTERPRETED:
        return Precision(torch.bfloat16, tl.bfloat16, "ieee")
    if dtype == torch.float32:
        return Precision(torch.float32, tl.float32, "ieee")
    return Precision(torch.float32, tl.float32, "tf32")


def score_operand(dtype: torch.dtype) -> tl.dtype:
    """What queries and keys are multiplied as; the interpreter cannot multiply bfloat16."""
    if dtype == torch.bfloat16 and INTERPRETED:
        return tl.float32
    return TRITON_TYPES[dtype]


@dataclass(frozen=True)
class Tile:
    rows: int
    keys: int
    size: int
    num_warps: int
    num_stages: int


def probability_tile(rows: int, keys: int, size: int, dtype: torch.dtype) -> Tile:
    """Keys: at most KEY_BLOCK."""
    wide = dtype == torch.float32
    block_q = block_size(rows, most=64)
    block_k = block_size(keys, most=128)
    block_d = block_size(size, most=32 if wide else 64)
    return Tile(block_q, block_k, block_d, 4 if block_q * block_k > 1024 else 2, 2)


def product_tile(rows: int, keys: int, size: int, dtype: torch.dtype) -> Tile:
    wide = dtype == torch.float32
    block_q = block_size(rows, most=32 if wide else 64)
    block_k = block_size(keys, most=32 if wide else 64)
    block_d = block_size(size, most=64 if wide else 128)
    return Tile(block_q, block_k, block_d, 4 if block_q * block_k > 1024 else 2, 2)


@dataclass(frozen=True)
class MixTile:
    students: int  # all of them
    teachers: int
    keys: int
    num_warps: int
    num_stages: int


def mix_tile(student_maps: int, teacher_maps: int, keys: int, scratch: torch.dtype) -> MixTile:
    block_h = block_size(student_maps)
    block_j = block_size(teacher_maps, most=32)
    block_k = block_size(keys, most=max(16, min(128, 4096 // max(block_h, block_j))))
    cells = max(block_h, block_j) * block_k
    return MixTile(block_h, block_j, block_k, 4 if cells > 1024 else 2, 1)


@dataclass(frozen=True)
class PairTile:
    queries: int
    keys: int
    student_size: int
    teacher_size: int
    num_warps: int
    num_stages: int


def pair_tile(
    queries: int, keys: int, student_size: int, teacher_size: int, wide: bool
) -> PairTile:
    """wide: whether a tensor is float32."""
    block_ds, block_dt = block_size(student_size), block_size(teacher_size)
    largest = max(block_ds, block_dt)
    most = 64 if largest <= 128 and not wide else 32
    block_q, block_k = block_size(queries, most=most), block_size(keys, most=most)
    return PairTile(block_q, block_k, block_ds, block_dt, 4, 1)
