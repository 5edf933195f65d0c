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
    student_scale,  # times log2(e)
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
    local = row_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = first_row + local
    last_row = tl.minimum(first_row + rows, clamped_length(query_lengths, sentence, queries))
    last_key = clamped_length(key_lengths, sentence, keys)
    seen = tl.where(first_row + row_block * BLOCK_Q < last_row, last_key, 0)
    if CAUSAL:
        seen = tl.minimum(seen, tl.minimum(last_row, first_row + (row_block + 1) * BLOCK_Q))
    maps += ((slot.to(tl.int64) * heads + head) * rows + row_block * BLOCK_Q) * pitch
    place = tl.arange(0, BLOCK_Q)[:, None] * pitch
    if WHOLE:
        if seen > 0:
            index = tl.arange(0, BLOCK_K)
            scores = score_block(
                query, key, row, index, last_row, last_key, size, scale, CAUSAL, CONTIGUOUS, UNIT,
                OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
            )  # fmt: skip
            highest = tl.max(scores, 1)
            highest = tl.where(highest == float("-inf"), 0.0, highest)
            weights = tl.exp2(scores - highest[:, None])
            total = tl.sum(weights, 1)
            weights *= (1 / tl.where(total == 0, 1.0, total))[:, None]
            mask = (row < last_row)[:, None] & (index < pitch)[None, :]
            tl.store(maps + place + index[None, :], weights.to(maps.dtype.element_ty), mask=mask)
    else:
        highest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_Q,), tl.float32)
        for start in range(0, seen, BLOCK_K):
            index = start + tl.arange(0, BLOCK_K)
            scores = score_block(
                query, key, row, index, last_row, last_key, size, scale, CAUSAL, CONTIGUOUS, UNIT,
                OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
            )  # fmt: skip
            new = tl.maximum(highest, tl.max(scores, 1))
            base = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp2(highest - base) + tl.sum(tl.exp2(scores - base[:, None]), 1)
            highest = new
        highest = tl.where(highest == float("-inf"), 0.0, highest)
        inverse = 1 / tl.where(total == 0, 1.0, total)
        for start in range(0, seen, BLOCK_K):
            index = start + tl.arange(0, BLOCK_K)
            scores = score_block(
                query, key, row, index, last_row, last_key, size, scale, CAUSAL, CONTIGUOUS, UNIT,
                OPERAND, BLOCK_Q, BLOCK_K, BLOCK_D, ONE_D, FAR,
            )  # fmt: skip
            weights = tl.exp2(scores - highest[:, None]) * inverse[:, None]
            mask = (row < last_row)[:, None] & (index < pitch)[None, :]
            tl.store(maps + place + index[None, :], weights.to(maps.dtype.element_ty), mask=mask)


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
    row,  # (BLOCK_Q,)
    index,  # (BLOCK_K,) of keys
    last_row,
    last_key,
    size,
    scale,
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
    """Scaled scores (BLOCK_Q, BLOCK_K), −∞ where a query does not attend."""
    scores = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    if ONE_D:
        scores = part_of_scores(
            scores, query, key, row, index, 0, last_row, last_key, size, CONTIGUOUS, UNIT, OPERAND,
            BLOCK_D, FAR,
        )  # fmt: skip
    else:
        for start in range(0, size, BLOCK_D):
            scores = part_of_scores(
                scores, query, key, row, index, start, last_row, last_key, size, CONTIGUOUS, UNIT,
                OPERAND, BLOCK_D, FAR,
            )  # fmt: skip
    attended = (index < last_key)[None, :]
    if CAUSAL:
        attended = attended & (index[None, :] <= row[:, None])
    return tl.where(attended, scores * scale, float("-inf"))


@triton.jit
def part_of_scores(
    scores,
    query,
    key,
    row,
    index,
    start,  # of the head's elements
    last_row,
    last_key,
    size,
    CONTIGUOUS: tl.constexpr,
    UNIT: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FAR: tl.constexpr,
):
    query, query_row, query_size = query
    key, key_row, key_size = key
    element = start + tl.arange(0, BLOCK_D)
    query_element = element if CONTIGUOUS else element.to(tl.int64) * query_size
    key_element = element if CONTIGUOUS else element.to(tl.int64) * key_size
    query_tile = tl.load(  # (BLOCK_Q, BLOCK_D)
        query + row_offsets(row, query_row, UNIT, FAR)[:, None] + query_element[None, :],
        mask=(row < last_row)[:, None] & (element < size)[None, :],
        other=0.0,
    )
    key_tile = tl.load(  # (BLOCK_D, BLOCK_K)
        key + row_offsets(index, key_row, UNIT, FAR)[None, :] + key_element[:, None],
        mask=(index < last_key)[None, :] & (element < size)[:, None],
        other=0.0,
    )
    return tl.dot(query_tile.to(OPERAND), key_tile.to(OPERAND), scores, input_precision="ieee")
