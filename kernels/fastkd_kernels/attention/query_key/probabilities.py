"""Attention probabilities of a chunk of query rows, written to a scratch of bounded size."""

import triton
import triton.language as tl

RUNTIME = (
    "student_scale teacher_scale student_query_batch student_query_head student_query_row "
    "student_query_size student_key_batch student_key_head student_key_row student_key_size "
    "teacher_query_batch teacher_query_head teacher_query_row teacher_query_size "
    "teacher_key_batch teacher_key_head teacher_key_row teacher_key_size student_heads "
    "student_group student_units teacher_heads teacher_group teacher_units first_sentence "
    "first_row rows queries keys pitch_units row_blocks student_programs"
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
    student_query,  # (B, Ns, Tq, Ds)
    student_key,  # (B, Ns_kv, Tk, Ds)
    teacher_query,  # (B, Nt, Tq, Dt)
    teacher_key,  # (B, Nt_kv, Tk, Dt)
    query_lengths,  # (B,) or None: rows beyond it are not needed
    key_lengths,  # (B,) or None
    student_maps,  # (sentences, Ns, rows, pitch)
    teacher_maps,  # (sentences, Nt, rows, pitch)
    student_scale,  # times log2(e), not 0
    teacher_scale,
    student_query_batch,
    student_query_head,
    student_query_row,
    student_query_size,
    student_key_batch,
    student_key_head,
    student_key_row,
    student_key_size,
    teacher_query_batch,
    teacher_query_head,
    teacher_query_row,
    teacher_query_size,
    teacher_key_batch,
    teacher_key_head,
    teacher_key_row,
    teacher_key_size,
    student_heads,
    student_group,
    student_units,
    teacher_heads,
    teacher_group,
    teacher_units,
    first_sentence,
    first_row,
    rows,
    queries,
    keys,
    pitch_units,
    row_blocks,
    student_programs,
    WHOLE: tl.constexpr,  # a row is one block
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,  # along the head size
    UNIT: tl.constexpr,  # of strides and of the head sizes
    STUDENT_OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STUDENT_D: tl.constexpr,
    TEACHER_D: tl.constexpr,
    ONE_D: tl.constexpr,  # they hold whole heads
    FAR: tl.constexpr,  # whether offsets within a head exceed int32
):
    shape = first_sentence, first_row, rows, queries, keys, pitch_units * 16, row_blocks
    program = tl.program_id(0)
    if program < student_programs:
        write_probabilities(
            program,
            (student_query, student_query_batch, student_query_head, student_query_row,
             student_query_size),
            (student_key, student_key_batch, student_key_head, student_key_row, student_key_size),
            (student_maps, student_heads, student_group, student_units * UNIT, student_scale),
            query_lengths, key_lengths, shape, WHOLE, CAUSAL, CONTIGUOUS, UNIT, STUDENT_OPERAND,
            BLOCK_Q, BLOCK_K, STUDENT_D, ONE_D, FAR,
        )  # fmt: skip
    else:
        write_probabilities(
            program - student_programs,
            (teacher_query, teacher_query_batch, teacher_query_head, teacher_query_row,
             teacher_query_size),
            (teacher_key, teacher_key_batch, teacher_key_head, teacher_key_row, teacher_key_size),
            (teacher_maps, teacher_heads, teacher_group, teacher_units * UNIT, teacher_scale),
            query_lengths, key_lengths, shape, WHOLE, CAUSAL, CONTIGUOUS, UNIT, TEACHER_OPERAND,
            BLOCK_Q, BLOCK_K, TEACHER_D, ONE_D, FAR,
        )  # fmt: skip


@triton.jit
def write_probabilities(
    program,
    query_side,
    key_side,
    side,
    query_lengths,
    key_lengths,
    shape,
    WHOLE: tl.constexpr,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """The softmax of a block of one head's rows: zeros up to the end of its last block of keys."""
    maps, heads, group, size, scale = side
    first_sentence, first_row, rows, queries, keys, pitch, row_blocks = shape
    row_block = program % row_blocks
    head = (program // row_blocks) % heads
    slot = program // (row_blocks * heads)  # sentence within the chunk
    sentence = first_sentence + slot
    query = head_rows(query_side, sentence, head, UNIT)
    key = head_rows(key_side, sentence, head // group, UNIT)
    block_row = first_row + row_block * BLOCK_Q
    row = block_row + tl.arange(0, BLOCK_Q)
    last_row = tl.minimum(first_row + rows, clamped_length(query_lengths, sentence, queries))
    last_key = clamped_length(key_lengths, sentence, keys)
    seen = tl.where(block_row < last_row, last_key, 0)
    every = seen  # keys that all rows of the block attend to
    if CAUSAL:
        seen = tl.minimum(seen, tl.minimum(last_row, block_row + BLOCK_Q))
        every = tl.minimum(seen, block_row + 1)
    maps += ((slot.to(tl.int64) * heads + head) * rows + row_block * BLOCK_Q) * pitch
    # A row or key that is not there is read as the last one that is, and left out after.
    near_row = tl.minimum(row, last_row - 1)
    if seen > 0:
        tile = query_part(query, near_row, 0, size, CONTIGUOUS, UNIT, BLOCK_D, FAR)
        if WHOLE:
            # Most blocks of full sentences need no mask, and know it before the first cell.
            if not CAUSAL and every >= BLOCK_K:
                write_whole_rows(
                    query, key, maps, tile, row, near_row, last_row, last_key, size, scale, pitch,
                    False, CAUSAL, CONTIGUOUS, UNIT, OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D,
                    FAR,
                )  # fmt: skip
            else:
                write_whole_rows(
                    query, key, maps, tile, row, near_row, last_row, last_key, size, scale, pitch,
                    True, CAUSAL, CONTIGUOUS, UNIT, OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D,
                    FAR,
                )  # fmt: skip
        else:
            write_long_rows(
                query, key, maps, tile, row, near_row, last_row, seen, every, last_key, size, scale,
                pitch, CAUSAL, CONTIGUOUS, UNIT, OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
            )  # fmt: skip


@triton.jit
def write_whole_rows(
    query,
    key,
    maps,  # at the block's first row
    tile,
    row,
    near_row,
    last_row,
    last_key,
    size,
    scale,
    pitch,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """Rows of one block of keys."""
    scores = score_block(
        query, key, tile, row, near_row, 0, last_key, size, scale, MASKED, CAUSAL, CONTIGUOUS,
        UNIT, OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
    )  # fmt: skip
    highest = highest_score(scores, scale)
    if MASKED:
        highest = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores * scale - highest[:, None])
    total = tl.sum(weights, 1)
    if MASKED:
        total = tl.where(total == 0, 1.0, total)
    weights *= (1 / total)[:, None]
    mask = (row < last_row)[:, None]
    index = tl.arange(0, BLOCK_K)
    if MASKED:
        mask = mask & (index < pitch)[None, :]
    place = tl.arange(0, BLOCK_Q)[:, None] * pitch + index[None, :]
    tl.store(maps + place, weights.to(maps.dtype.element_ty), mask=mask)


@triton.jit
def write_long_rows(
    query,
    key,
    maps,  # at the block's first row
    tile,
    row,
    near_row,
    last_row,
    seen,  # keys that any row attends to
    every,  # keys that all do
    last_key,
    size,
    scale,
    pitch,
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """Rows of several blocks of keys, walked for their sums and again for the maps."""
    whole = every // BLOCK_K * BLOCK_K
    index = tl.arange(0, BLOCK_K)
    place = tl.arange(0, BLOCK_Q)[:, None] * pitch
    highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    for masked in tl.static_range(2):
        for start in range(whole if masked else 0, seen if masked else whole, BLOCK_K):
            scores = score_block(
                query, key, tile, row, near_row, start, last_key, size, scale, masked,
                CAUSAL, CONTIGUOUS, UNIT, OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
            )  # fmt: skip
            new = tl.maximum(highest, highest_score(scores, scale))
            base = tl.where(new == float("-inf"), 0.0, new)
            total *= tl.exp2(highest - base)
            total += tl.sum(tl.exp2(scores * scale - base[:, None]), 1)
            highest = new
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    inverse = 1 / tl.where(total == 0, 1.0, total)
    for masked in tl.static_range(2):
        for start in range(whole if masked else 0, seen if masked else whole, BLOCK_K):
            scores = score_block(
                query, key, tile, row, near_row, start, last_key, size, scale, masked,
                CAUSAL, CONTIGUOUS, UNIT, OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
            )  # fmt: skip
            weights = tl.exp2(scores * scale - highest[:, None]) * inverse[:, None]
            mask = (row < last_row)[:, None]
            if masked:
                mask = mask & (start + index < pitch)[None, :]
            here = maps + start + place + index[None, :]
            tl.store(here, weights.to(maps.dtype.element_ty), mask=mask)


@triton.jit
def head_rows(side, sentence, head, UNIT: tl.constexpr):
    """(rows of one head, their stride in UNITs, stride of elements)"""
    tensor, batch_stride, head_stride, row_stride, size_stride = side
    tensor += sentence.to(tl.int64) * batch_stride * UNIT + head.to(tl.int64) * head_stride * UNIT
    return tensor, row_stride, size_stride


@triton.jit
def row_offsets(row, stride, UNIT: tl.constexpr, FAR: tl.constexpr):
    """Offsets of rows within a head."""
    if FAR:
        return row.to(tl.int64) * (stride.to(tl.int64) * UNIT)
    return row * (stride * UNIT)


@triton.jit
def score_block(
    query,  # as `head_rows` returns it
    key,
    query_tile,  # (BLOCK_Q, BLOCK_D), the first elements of the queries
    row,  # (BLOCK_Q,)
    near_row,  # (BLOCK_Q,), those that are there
    start,  # of the keys
    last_key,
    size,
    scale,
    MASKED: tl.constexpr,  # whether a row may not attend to a key of the block
    CAUSAL: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """Scores (BLOCK_Q, BLOCK_K), not scaled; −∞ times the scale where a query does not attend."""
    every = tl.arange(0, BLOCK_K)
    index = start + every
    near = every  # from the block's first key on
    if MASKED:
        near = tl.minimum(every, last_key - 1 - start)
    rows, key_row, key_size = key
    rows += start.to(tl.int64) * key_row * UNIT if FAR else start * (key_row * UNIT)
    key = rows, key_row, key_size
    scores = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    tile = key_part(key, near, 0, size, CONTIGUOUS, UNIT, BLOCK_D, FAR)
    scores = tl.dot(query_tile.to(OPERAND), tile.to(OPERAND), scores, input_precision="ieee")
    if not ONE_D:
        for first in range(BLOCK_D, size, BLOCK_D):
            part = query_part(query, near_row, first, size, CONTIGUOUS, UNIT, BLOCK_D, FAR)
            tile = key_part(key, near, first, size, CONTIGUOUS, UNIT, BLOCK_D, FAR)
            scores = tl.dot(part.to(OPERAND), tile.to(OPERAND), scores, input_precision="ieee")
    if MASKED:
        attended = (index < last_key)[None, :]
        if CAUSAL:
            attended = attended & (index[None, :] <= row[:, None])
        scores = tl.where(attended, scores, tl.where(scale > 0, float("-inf"), float("inf")))
    return scores


@triton.jit
def highest_score(scores, scale):
    """Of each row, scaled."""
    highest = tl.max(scores, 1) if scale > 0 else tl.min(scores, 1)
    return highest * scale


@triton.jit
def query_part(
    query,
    row,
    first,  # of the head's elements
    size,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """(rows, BLOCK_D) of queries, zeros beyond the head's size."""
    query, query_row, query_size = query
    element = first + tl.arange(0, BLOCK_D)
    across = element if CONTIGUOUS else element.to(tl.int64) * query_size
    place = query + row_offsets(row, query_row, UNIT, FAR)[:, None] + across[None, :]
    return tl.load(place, mask=(element < size)[None, :], other=0.0)


@triton.jit
def key_part(
    key,
    index,
    first,  # of the head's elements
    size,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FAR: tl.constexpr,
):
    """(BLOCK_D, keys), zeros beyond the head's size."""
    key, key_row, key_size = key
    element = first + tl.arange(0, BLOCK_D)
    across = element if CONTIGUOUS else element.to(tl.int64) * key_size
    place = key + row_offsets(index, key_row, UNIT, FAR)[None, :] + across[:, None]
    return tl.load(place, mask=(element < size)[:, None], other=0.0)
