"""Reads maps of a query row, and mixes the student's: blocks of (keys, heads)."""

import triton
import triton.language as tl

from fastkd_kernels.attention.query_key.probabilities import clamped_length
from fastkd_kernels.common import INTERPRETED

EXACT_PRODUCTS = tl.constexpr(INTERPRETED)  # the interpreter multiplies float32 as it is


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
    side,  # (maps at the row, stride of heads in UNITs, of keys, keys in memory in UNITs, heads)
    head,  # (BLOCK_H,)
    key,  # (BLOCK_K,)
    seen,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,  # offsets beyond int32
    SCRATCH: tl.constexpr,  # of `probabilities_fwd`: zeros from `seen` to a block's end
):
    """One row's probabilities as they are kept, (BLOCK_K, BLOCK_H); 0 from key `seen` on."""
    maps, head_stride, key_stride, width, heads = side
    if WIDE:
        along = head.to(tl.int64) * (head_stride.to(tl.int64) * UNIT)
    else:
        along = head * (head_stride * UNIT)
    across = key if CONTIGUOUS else key.to(tl.int64) * key_stride
    # Whole 16-byte words are read; what nobody wrote is dropped after.
    limit = tl.minimum(width, tl.cdiv(seen, UNIT)) * UNIT if SCRATCH else width * UNIT
    mask = (key < limit)[:, None] & (head < heads)[None, :]
    tile = tl.load(maps + across[:, None] + along[None, :], mask=mask, other=0.0)
    if not SCRATCH:
        tile = tl.where((key < seen)[:, None], tile, 0.0)
    return tile


@triton.jit
def as_operand(tile, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`tile` as it enters a product: tensor cores cut float32 off, so it is rounded before."""
    if PRECISION == "tf32" and not EXACT_PRODUCTS:
        bits = tile.to(tl.float32).to(tl.int32, bitcast=True)
        return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tile.to(OPERAND)


@triton.jit
def as_sums(tile, OPERAND: tl.constexpr, BLOCK: tl.constexpr, TIMES: tl.constexpr = 1):
    """TIMES · BLOCK columns of `tile` in float32, in the registers where a product of it would be.

    TIMES: 1 or −1
    """
    if OPERAND == tl.float32:
        return tile.to(tl.float32) * TIMES
    # A product with ones: exact, and cheaper than to move it there.
    row, column = tl.arange(0, tile.shape[1]), tl.arange(0, BLOCK)
    ones = tl.where(row[:, None] == column[None, :], 1.0 * TIMES, 0.0)
    return tl.dot(tile.to(OPERAND), ones.to(OPERAND))


@triton.jit
def load_weight(weight, rival, head, teacher_maps, student_maps):
    """(BLOCK_J, BLOCK_H)"""
    return tl.load(
        weight + rival[:, None] * student_maps + head[None, :],
        mask=(rival < teacher_maps)[:, None] & (head < student_maps)[None, :],
        other=0.0,
    )


@triton.jit
def mixed_maps(
    start,  # (BLOCK_K, BLOCK_J), what the maps are added to
    operand,  # (BLOCK_K, BLOCK_H) of the row, where ONE_H
    mixing,  # (BLOCK_J, BLOCK_H), where ONE_H
    weight,
    student,  # as `load_maps` takes it
    rival,  # (BLOCK_J,)
    teacher_maps,
    key,
    seen,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Mixed maps of one row, (BLOCK_K, BLOCK_J) in float32."""
    if weight is None:
        own = load_maps(student, rival, key, seen, UNIT, CONTIGUOUS, WIDE, SCRATCH)
        mixed = start + as_sums(own, OPERAND, BLOCK_J)
    elif ONE_H:
        mixed = tl.dot(operand, tl.trans(mixing), start, input_precision=PRECISION)
    else:
        student_maps = student[4]
        mixed = start
        for first in range(0, student_maps, BLOCK_H):
            head = first + tl.arange(0, BLOCK_H)
            tile = load_maps(student, head, key, seen, UNIT, CONTIGUOUS, WIDE, SCRATCH)
            tile = as_operand(tile, OPERAND, PRECISION)
            part = load_weight(weight, rival, head, teacher_maps, student_maps)
            part = as_operand(part, OPERAND, PRECISION)
            mixed = tl.dot(tile, tl.trans(part), mixed, input_precision=PRECISION)
    return mixed


@triton.jit
def both_sides(
    own,  # the student's maps at the row, as `load_maps` takes them
    other,  # the teacher's
    operand,  # (BLOCK_K, BLOCK_H) of the row, where ONE_H
    mixing,  # (BLOCK_J, BLOCK_H), where ONE_H
    weight,
    start,  # of the teacher's maps
    key,
    seen,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    APART: tl.constexpr,
):
    """(goal, mixed), or unless APART (−goal, mixed − goal): (BLOCK_K, BLOCK_J) in float32.

    A product that starts from −goal subtracts it for nothing.
    """
    rival = start + tl.arange(0, BLOCK_J)
    # Half a block is read as a whole one, whose product with ones is taken over 16 columns.
    COLUMNS: tl.constexpr = 16 if BLOCK_J < 16 and OPERAND != tl.float32 else BLOCK_J
    read = start + tl.arange(0, COLUMNS)
    goal = load_maps(other, read, key, seen, TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH)
    goal = as_sums(goal, OPERAND, BLOCK_J, 1 if APART else -1)
    begun = tl.zeros((BLOCK_K, BLOCK_J), tl.float32) if APART else goal
    mixed = mixed_maps(
        begun, operand, mixing, weight, own, rival, other[4], key, seen, STUDENT_UNIT, CONTIGUOUS,
        WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J, BLOCK_K,
    )  # fmt: skip
    return goal, mixed
