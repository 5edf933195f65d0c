"""Reads maps of a query row, and mixes the student's."""

import triton
import triton.language as tl

from fastkd_kernels.attention.query_key.probabilities import clamped_length


@triton.jit
def row_extent(
    query_lengths,
    key_lengths,
    sentence,
    row,
    row_end,
    queries,
    keys,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
):
    """How many keys a query row attends to and how many cells of it count; both from the left."""
    seen = clamped_length(key_lengths, sentence, keys)
    if CAUSAL:
        seen = tl.minimum(seen, row + 1)
    if INCLUDE:
        counted = keys
    else:
        seen = tl.where(row < clamped_length(query_lengths, sentence, queries), seen, 0)
        counted = seen
    seen = tl.where(row < row_end, seen, 0)
    counted = tl.where(row < row_end, counted, 0)
    return seen, counted


@triton.jit
def load_maps(
    maps,  # at the row
    factors,  # (N, rows, key blocks) at the sentence and row, or None: the maps are normalised
    head,
    heads,
    block,  # (keys of the block, keys attended to, its key block, key blocks, rows)
    layout,  # (keys that a row has in memory, stride of heads, of keys), the first two in UNITs
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,  # offsets beyond int32
):
    """One row's probabilities, (BLOCK_H, BLOCK_K) in float32; 0 from key `seen` on."""
    key, seen, key_block, key_blocks, rows = block
    width, head_stride, key_stride = layout
    if WIDE:
        along = head.to(tl.int64) * (head_stride.to(tl.int64) * UNIT)
    else:
        along = head * (head_stride * UNIT)
    across = key if CONTIGUOUS else key.to(tl.int64) * key_stride
    # Whole 16-byte words are read; what nobody wrote is dropped after.
    mask = (head < heads)[:, None] & (key < width * UNIT)[None, :]
    tile = tl.load(maps + along[:, None] + across[None, :], mask=mask, other=0.0).to(tl.float32)
    if factors is not None:
        place = head * (rows * key_blocks) + key_block
        tile *= tl.load(factors + place, mask=head < heads, other=0.0)[:, None]
    return tl.where((key < seen)[None, :], tile, 0.0)


@triton.jit
def load_weight(weight, teacher_head, head, teacher_maps, student_maps):
    """(BLOCK_J, BLOCK_H)"""
    return tl.load(
        weight + teacher_head[:, None] * student_maps + head[None, :],
        mask=(teacher_head < teacher_maps)[:, None] & (head < student_maps)[None, :],
        other=0.0,
    )


@triton.jit
def mix_in_parts(
    student,  # at the row
    factors,
    weight,
    rival,
    teacher_maps,
    student_maps,
    block,
    layout,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Mixed maps, (BLOCK_J, BLOCK_K), of student maps that no program holds at once."""
    mixed = tl.zeros((BLOCK_J, BLOCK_K), tl.float32)
    for start in range(0, student_maps, BLOCK_H):
        head = start + tl.arange(0, BLOCK_H)
        tile = load_maps(
            student, factors, head, student_maps, block, layout, UNIT, CONTIGUOUS, WIDE
        )
        mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
        mixed = tl.dot(mixing.to(OPERAND), tile.to(OPERAND), mixed, input_precision=PRECISION)
    return mixed
