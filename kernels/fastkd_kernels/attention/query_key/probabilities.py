"""Attention probabilities of a chunk of query rows, written to a scratch of bounded size."""

import triton
import triton.language as tl

RUNTIME = (
    "scale query_batch query_head query_row query_size key_batch key_head key_row key_size heads "
    "group size_units first_sentence first_row rows queries keys pitch_units key_blocks row_blocks"
).split()


@triton.jit
def clamped_length(lengths, sentence, longest):
    """The sentence's length, or `longest` where there are none."""
    length = longest
    if lengths is not None:
        length = tl.load(lengths + sentence).to(tl.int32)
        length = tl.minimum(tl.maximum(length, 0), longest)
    return length


@triton.jit(do_not_specialize=RUNTIME)
def probabilities_fwd(
    query,  # (B, N, Tq, D)
    key,  # (B, N_kv, Tk, D)
    query_lengths,  # (B,) or None: rows beyond it are not needed
    key_lengths,  # (B,) or None
    maps,  # (sentences, N, rows, pitch)
    block_max,  # (sentences, N, rows, key blocks) or None: a row is one block
    block_sum,  # (sentences, N, rows, key blocks) or None
    scale,  # times log2(e)
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
    row_blocks,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,  # along the head size
    UNIT: tl.constexpr,  # of strides and of the head size
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    size = size_units * UNIT
    pitch = pitch_units * 16
    program = tl.program_id(0)
    key_block = program % key_blocks
    program = program // key_blocks
    row_block = program % row_blocks
    program = program // row_blocks
    head = program % heads
    slot = program // heads  # sentence within the chunk
    sentence = first_sentence + slot

    row = first_row + row_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    key_index = key_block * BLOCK_K + tl.arange(0, BLOCK_K)
    last_row = tl.minimum(first_row + rows, clamped_length(query_lengths, sentence, queries))
    last_key = clamped_length(key_lengths, sentence, keys)
    last_row_here = tl.minimum(last_row, first_row + (row_block + 1) * BLOCK_Q)
    seen = last_key
    if CAUSAL:
        seen = tl.minimum(seen, last_row_here)
    place = (slot.to(tl.int64) * heads + head) * rows + (row - first_row)  # (BLOCK_Q,)
    chunk_end = tl.minimum(first_row + rows, queries)
    if block_max is not None:
        block_max += key_block
        block_sum += key_block
    if (first_row + row_block * BLOCK_Q < last_row) & (key_block * BLOCK_K < seen):
        query += sentence.to(tl.int64) * query_batch * UNIT + head.to(tl.int64) * query_head * UNIT
        key += (
            sentence.to(tl.int64) * key_batch * UNIT
            + (head // group).to(tl.int64) * key_head * UNIT
        )
        scores = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        for start in range(0, size, BLOCK_D):
            element = start + tl.arange(0, BLOCK_D)
            query_element = element if CONTIGUOUS else element.to(tl.int64) * query_size
            key_element = element if CONTIGUOUS else element.to(tl.int64) * key_size
            query_tile = tl.load(  # (BLOCK_Q, BLOCK_D)
                query
                + row.to(tl.int64)[:, None] * (query_row.to(tl.int64) * UNIT)
                + query_element[None, :],
                mask=(row < last_row)[:, None] & (element < size)[None, :],
                other=0.0,
            )
            key_tile = tl.load(  # (BLOCK_D, BLOCK_K)
                key
                + key_index.to(tl.int64)[None, :] * (key_row.to(tl.int64) * UNIT)
                + key_element[:, None],
                mask=(key_index < last_key)[None, :] & (element < size)[:, None],
                other=0.0,
            )
            scores = tl.dot(
                query_tile.to(OPERAND), key_tile.to(OPERAND), scores, input_precision=PRECISION
            )
        attended = (key_index < last_key)[None, :]
        if CAUSAL:
            attended = attended & (key_index[None, :] <= row[:, None])
        scores = tl.where(attended, scores * scale, float("-inf"))
        highest = tl.max(scores, 1)  # (BLOCK_Q,)
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - highest[:, None])
        total = tl.sum(weights, 1)
        if block_max is None:
            weights = weights / tl.where(total == 0, 1.0, total)[:, None]
        else:
            tl.store(block_max + place * key_blocks, highest, mask=row < chunk_end)
            tl.store(block_sum + place * key_blocks, total, mask=row < chunk_end)
        tl.store(
            maps + place[:, None] * pitch + key_index[None, :],
            weights.to(maps.dtype.element_ty),
            mask=(row < last_row)[:, None] & (key_index < pitch)[None, :],
        )
    elif block_max is not None:
        nothing = tl.zeros((BLOCK_Q,), tl.float32)
        tl.store(block_max + place * key_blocks, nothing, mask=row < chunk_end)
        tl.store(block_sum + place * key_blocks, nothing, mask=row < chunk_end)
