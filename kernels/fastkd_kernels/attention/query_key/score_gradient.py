"""From the gradient of the student's scores to those of its queries and keys, and last sums."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.read import as_operand
from fastkd_kernels.attention.query_key.probabilities import (
    clamped_length,
    head_rows,
    row_offsets,
)
from fastkd_kernels.attention.sums import add_up

RUNTIME = (
    "scale query_batch query_head query_row query_size key_batch key_head key_row key_size heads "
    "group size_units first_sentence first_row rows queries keys pitch_units "
    "row_blocks column_blocks size_blocks query_programs key_programs first_chunk last_chunk "
    "loss_parts loss_maps loss_factor totals slots weight_size student_maps"
).split()


@triton.jit
def score_gradient_tile(
    scores,
    place,  # of the first row in (sentences, N, rows)
    rows_real,  # (R,)
    row,
    key,  # (C,)
    last_key,
    pitch,
    CAUSAL: tl.constexpr,
):
    """(R, C) gradient of the scores; 0 where nothing is attended to.

    Of a row that attends to anything, `mix_gradient_bwd` wrote whole blocks, zeros from its last
    key on. Causal rows of one block differ in how many blocks they have.
    """
    # Whole 16-byte words are read; what nobody wrote is dropped after.
    held = rows_real[:, None] & (key < tl.cdiv(last_key, 16) * 16)[None, :]
    within = tl.arange(0, row.shape[0])[:, None] * pitch + key[None, :]
    gradient = tl.load(scores + place * pitch + within, mask=held, other=0.0)
    if CAUSAL:
        gradient = tl.where(key[None, :] <= row[:, None], gradient, 0.0)
    return gradient


@triton.jit(do_not_specialize=RUNTIME)
def score_gradient_bwd(
    query,  # (B, N, Tq, D)
    key,  # (B, N_kv, Tk, D)
    query_lengths,  # (B,) or None: rows beyond it have no gradient
    key_lengths,  # (B,) or None
    scores,  # gradient of the scores, (sentences, N, rows, pitch)
    query_gradient,  # (B, N, Tq, D), contiguous
    key_gradient,  # (B, N_kv, Tk, D), contiguous
    key_sum,  # (sentences, N_kv, Tk, D) float32, or None: one chunk holds all rows
    loss,  # what `add_up` takes, by programs beyond those of the gradients
    total,
    weight_slots,
    weight_gradient,
    mixing,
    scale,  # of the gradients
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
    row_blocks,
    column_blocks,
    size_blocks,
    query_programs,
    key_programs,
    first_chunk,
    last_chunk,
    loss_parts,
    loss_maps,
    loss_factor,
    totals,
    slots,
    weight_size,
    student_maps,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,  # of strides and of the head size
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FAR: tl.constexpr,
):
    size = size_units * UNIT
    pitch = pitch_units * 16
    program = tl.program_id(0)
    query_side = query, query_batch, query_head, query_row, query_size
    key_side = key, key_batch, key_head, key_row, key_size
    held = scores, pitch, heads, group
    chunk = first_sentence, first_row, rows, queries, keys
    if program < query_programs:
        block = program // size_blocks
        query_block_gradient(
            block // row_blocks, block % row_blocks, program % size_blocks * BLOCK_D, size, scale,
            key_side, held, chunk, query_lengths, key_lengths, query_gradient, CAUSAL, CONTIGUOUS,
            UNIT, OPERAND, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D,
            FAR,
        )  # fmt: skip
    elif program < query_programs + key_programs:
        program -= query_programs
        block = program // size_blocks
        key_block_gradient(
            block // column_blocks, block % column_blocks, program % size_blocks * BLOCK_D, size,
            scale, query_side, held, chunk, query_lengths, key_lengths, key_gradient, key_sum,
            first_chunk, last_chunk, CAUSAL, CONTIGUOUS, UNIT, OPERAND, PRECISION, BLOCK_Q, BLOCK_K,
            BLOCK_D, FAR,
        )  # fmt: skip
    else:
        add_up(
            program - query_programs - key_programs, loss, total, loss_parts, loss_maps,
            loss_factor, totals, weight_slots, weight_gradient, mixing, slots, weight_size,
            student_maps,
        )  # fmt: skip


@triton.jit
def query_block_gradient(
    maps_before,  # sentences · heads before this one
    row_block,
    first_element,
    size,
    scale,
    key_side,
    held,
    chunk,
    query_lengths,
    key_lengths,
    query_gradient,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """dQ = s·dS·K of a block of rows."""
    scores, pitch, heads, group = held
    first_sentence, first_row, rows, queries, keys = chunk
    head = maps_before % heads
    slot = maps_before // heads
    sentence = first_sentence + slot
    element = first_element + tl.arange(0, BLOCK_D)
    local = row_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = first_row + local
    last_key = clamped_length(key_lengths, sentence, keys)
    row_end = tl.minimum(first_row + rows, queries)
    real_end = tl.minimum(row_end, clamped_length(query_lengths, sentence, queries))
    place = maps_before.to(tl.int64) * rows + row_block * BLOCK_Q
    seen = tl.where(first_row + row_block * BLOCK_Q < real_end, last_key, 0)
    if CAUSAL:
        seen = tl.minimum(seen, first_row + (row_block + 1) * BLOCK_Q)
    key, key_row, key_size = head_rows(key_side, sentence, head // group, UNIT)
    across = element if CONTIGUOUS else element.to(tl.int64) * key_size
    total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in range(0, seen, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        gradient = score_gradient_tile(
            scores, place, row < real_end, row, column, last_key, pitch, CAUSAL
        )
        tile = tl.load(  # (BLOCK_K, BLOCK_D)
            key + row_offsets(column, key_row, UNIT, FAR)[:, None] + across[None, :],
            mask=(column < last_key)[:, None] & (element < size)[None, :],
            other=0.0,
        )
        total = tl.dot(
            as_operand(gradient, OPERAND, PRECISION),
            as_operand(tile, OPERAND, PRECISION),
            total,
            input_precision=PRECISION,
        )
    here = (sentence.to(tl.int64) * heads + head) * queries + first_row + row_block * BLOCK_Q
    within = tl.arange(0, BLOCK_Q)[:, None] * size + element[None, :]
    tl.store(
        query_gradient + here * size + within,
        (total * scale).to(query_gradient.dtype.element_ty),
        mask=(row < row_end)[:, None] & (element < size)[None, :],
    )


@triton.jit
def key_block_gradient(
    heads_before,  # sentences · key heads before this one
    column_block,
    first_element,
    size,
    scale,
    query_side,
    held,
    chunk,
    query_lengths,
    key_lengths,
    key_gradient,
    key_sum,
    first_chunk,
    last_chunk,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """dK = s·dSᵀ·Q of a block of keys, added up over the heads that share it and over chunks."""
    scores, pitch, heads, group = held
    first_sentence, first_row, rows, queries, keys = chunk
    key_heads = heads // group
    slot = heads_before // key_heads
    sentence = first_sentence + slot
    element = first_element + tl.arange(0, BLOCK_D)
    column = column_block * BLOCK_K + tl.arange(0, BLOCK_K)
    last_key = clamped_length(key_lengths, sentence, keys)
    row_end = tl.minimum(first_row + rows, queries)
    real_end = tl.minimum(row_end, clamped_length(query_lengths, sentence, queries))
    local_end = tl.where(column_block * BLOCK_K < last_key, real_end - first_row, 0)
    low = 0
    if CAUSAL:
        low = tl.maximum(column_block * BLOCK_K - first_row, 0) // BLOCK_Q * BLOCK_Q
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for member in range(group):
        head = heads_before % key_heads * group + member
        query, query_row, query_size = head_rows(query_side, sentence, head, UNIT)
        across = element if CONTIGUOUS else element.to(tl.int64) * query_size
        for first in range(low, local_end, BLOCK_Q):
            local = first + tl.arange(0, BLOCK_Q)
            row = first_row + local
            place = (slot.to(tl.int64) * heads + head) * rows + first
            gradient = score_gradient_tile(
                scores, place, row < real_end, row, column, last_key, pitch, CAUSAL
            )
            tile = tl.load(  # (BLOCK_Q, BLOCK_D)
                query + row_offsets(row, query_row, UNIT, FAR)[:, None] + across[None, :],
                mask=(row < real_end)[:, None] & (element < size)[None, :],
                other=0.0,
            )
            total = tl.dot(
                tl.trans(as_operand(gradient, OPERAND, PRECISION)),
                as_operand(tile, OPERAND, PRECISION),
                total,
                input_precision=PRECISION,
            )
    inside = (column < keys)[:, None] & (element < size)[None, :]
    within = tl.arange(0, BLOCK_K)[:, None] * size + element[None, :]
    if key_sum is not None:
        key_sum += (heads_before.to(tl.int64) * keys + column_block * BLOCK_K) * size
        if first_chunk == 0:
            total += tl.load(key_sum + within, mask=inside, other=0.0)
        if last_chunk == 0:
            tl.store(key_sum + within, total, mask=inside)
    if last_chunk != 0:
        before = (first_sentence * key_heads + heads_before).to(tl.int64) * keys
        tl.store(
            key_gradient + (before + column_block * BLOCK_K) * size + within,
            (total * scale).to(key_gradient.dtype.element_ty),
            mask=inside,
        )
