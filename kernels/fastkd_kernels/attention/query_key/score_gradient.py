"""From the gradient of the student's scores to those of its queries and keys."""

import triton
import triton.language as tl

from fastkd_kernels.attention.query_key.probabilities import clamped_length

RUNTIME = (
    "scale query_batch query_head query_row query_size key_batch key_head key_row key_size heads "
    "group size_units first_sentence first_row rows queries keys pitch_units key_blocks segments "
    "row_blocks column_blocks size_blocks query_programs first_chunk last_chunk"
).split()


@triton.jit
def score_gradient_tile(
    scores,  # gradient of the scores, or P ∘ dP with `delta`
    maps,
    factors,
    delta,
    place,  # (R,) of the rows in (sentences, N, rows)
    rows_real,  # (R,)
    row,
    key,  # (C,)
    last_key,
    pitch,
    key_blocks,
    segments,
    key_block,
    CAUSAL: tl.constexpr,
):
    """(R, C) gradient of the scores in float32; 0 where nothing is attended to."""
    mask = rows_real[:, None] & (key < last_key)[None, :]
    if CAUSAL:
        mask = mask & (key[None, :] <= row[:, None])
    here = place[:, None] * pitch + key[None, :]
    # Whole 16-byte words are read; what nobody wrote is dropped after.
    held = rows_real[:, None] & (key < pitch)[None, :]
    gradient = tl.load(scores + here, mask=held, other=0.0).to(tl.float32)
    gradient = tl.where(mask, gradient, 0.0)
    if delta is not None:
        known = tl.load(maps + here, mask=held, other=0.0).to(tl.float32)
        total = tl.zeros_like(place).to(tl.float32)
        for segment in range(segments):
            total += tl.load(delta + place * segments + segment, mask=rows_real, other=0.0)
        if factors is not None:
            total *= tl.load(factors + place * key_blocks + key_block, mask=rows_real, other=0.0)
        gradient = tl.where(mask, gradient - known * total[:, None], 0.0)
    return gradient


@triton.jit(do_not_specialize=RUNTIME)
def score_gradient_bwd(
    query,  # (B, N, Tq, D)
    key,  # (B, N_kv, Tk, D)
    query_lengths,  # (B,) or None: rows beyond it have no gradient
    key_lengths,  # (B,) or None
    scores,  # (sentences, N, rows, pitch)
    maps,  # (sentences, N, rows, pitch), or None with `delta`
    factors,  # (sentences, N, rows, key blocks), or None: the maps are normalised
    delta,  # (sentences, N, rows, segments), or None: `scores` is complete
    query_gradient,  # (B, N, Tq, D), contiguous
    key_gradient,  # (B, N_kv, Tk, D), contiguous
    key_sum,  # (sentences, N_kv, Tk, D) float32, or None: one chunk holds all rows
    scale,
    query_batch,
    query_head,
    query_row,
    query_size,
    key_batch,
    key_head,
    key_row,
    key_size,
    heads,
    group,
    size_units,
    first_sentence,
    first_row,
    rows,
    queries,
    keys,
    pitch_units,
    key_blocks,
    segments,
    row_blocks,
    column_blocks,
    size_blocks,
    query_programs,
    first_chunk,
    last_chunk,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,  # of strides and of the head size
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    size = size_units * UNIT
    pitch = pitch_units * 16
    program = tl.program_id(0)
    if program < query_programs:
        element = (program % size_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
        program = program // size_blocks
        row_block = program % row_blocks
        program = program // row_blocks
        head = program % heads
        slot = program // heads
        sentence = first_sentence + slot
        local = row_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
        row = first_row + local
        last_key = clamped_length(key_lengths, sentence, keys)
        row_end = tl.minimum(first_row + rows, queries)
        real_end = tl.minimum(row_end, clamped_length(query_lengths, sentence, queries))
        rows_real = row < real_end
        place = (slot.to(tl.int64) * heads + head) * rows + local
        seen = tl.where(first_row + row_block * BLOCK_Q < real_end, last_key, 0)
        if CAUSAL:
            seen = tl.minimum(seen, first_row + (row_block + 1) * BLOCK_Q)
        key += (
            sentence.to(tl.int64) * key_batch * UNIT
            + (head // group).to(tl.int64) * key_head * UNIT
        )
        across = element if CONTIGUOUS else element.to(tl.int64) * key_size
        total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        for first in range(0, seen, BLOCK_K):
            column = first + tl.arange(0, BLOCK_K)
            gradient = score_gradient_tile(
                scores,
                maps,
                factors,
                delta,
                place,
                rows_real,
                row,
                column,
                last_key,
                pitch,
                key_blocks,
                segments,
                first // KEY_BLOCK,
                CAUSAL,
            )
            tile = tl.load(  # (BLOCK_K, BLOCK_D)
                key
                + column.to(tl.int64)[:, None] * (key_row.to(tl.int64) * UNIT)
                + across[None, :],
                mask=(column < last_key)[:, None] & (element < size)[None, :],
                other=0.0,
            )
            total = tl.dot(gradient.to(OPERAND), tile.to(OPERAND), total, input_precision=PRECISION)
        here = (sentence.to(tl.int64) * heads + head) * queries + row
        tl.store(
            query_gradient + here[:, None] * size + element[None, :],
            (total * scale).to(query_gradient.dtype.element_ty),
            mask=(row < row_end)[:, None] & (element < size)[None, :],
        )
    else:
        program -= query_programs
        element = (program % size_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
        program = program // size_blocks
        column_block = program % column_blocks
        program = program // column_blocks
        key_heads = heads // group
        key_head_index = program % key_heads
        slot = program // key_heads
        sentence = first_sentence + slot
        column = column_block * BLOCK_K + tl.arange(0, BLOCK_K)
        last_key = clamped_length(key_lengths, sentence, keys)
        real_end = tl.minimum(
            tl.minimum(first_row + rows, queries),
            clamped_length(query_lengths, sentence, queries),
        )
        local_end = tl.where(column_block * BLOCK_K < last_key, real_end - first_row, 0)
        low = 0
        if CAUSAL:
            low = tl.maximum(column_block * BLOCK_K - first_row, 0) // BLOCK_Q * BLOCK_Q
        across = element if CONTIGUOUS else element.to(tl.int64) * query_size
        total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
        for member in range(group):
            head = key_head_index * group + member
            query_here = (
                query
                + sentence.to(tl.int64) * query_batch * UNIT
                + head.to(tl.int64) * query_head * UNIT
            )
            for first in range(low, local_end, BLOCK_Q):
                local = first + tl.arange(0, BLOCK_Q)
                row = first_row + local
                rows_real = row < real_end
                place = (slot.to(tl.int64) * heads + head) * rows + local
                gradient = score_gradient_tile(
                    scores,
                    maps,
                    factors,
                    delta,
                    place,
                    rows_real,
                    row,
                    column,
                    last_key,
                    pitch,
                    key_blocks,
                    segments,
                    column_block * BLOCK_K // KEY_BLOCK,
                    CAUSAL,
                )
                tile = tl.load(  # (BLOCK_Q, BLOCK_D)
                    query_here
                    + row.to(tl.int64)[:, None] * (query_row.to(tl.int64) * UNIT)
                    + across[None, :],
                    mask=rows_real[:, None] & (element < size)[None, :],
                    other=0.0,
                )
                total = tl.dot(
                    tl.trans(gradient.to(OPERAND)),
                    tile.to(OPERAND),
                    total,
                    input_precision=PRECISION,
                )
        inside = (column < keys)[:, None] & (element < size)[None, :]
        if key_sum is not None:
            known = key_sum + (
                ((slot.to(tl.int64) * key_heads + key_head_index) * keys + column)[:, None] * size
                + element[None, :]
            )
            if first_chunk == 0:
                total += tl.load(known, mask=inside, other=0.0)
            if last_chunk == 0:
                tl.store(known, total, mask=inside)
        if last_chunk != 0:
            here = (sentence.to(tl.int64) * key_heads + key_head_index) * keys + column
            tl.store(
                key_gradient + here[:, None] * size + element[None, :],
                (total * scale).to(key_gradient.dtype.element_ty),
                mask=inside,
            )
