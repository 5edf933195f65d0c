"""Head against head, backward: dK by blocks of keys, without maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention.pairs.blocks import (
    BACKWARD_RUNTIME,
    attended_cells,
    load_forward,
    load_rows,
    masked_scores,
    probability_and_gradient,
    store_gradient,
    whole_rows,
)
from fastkd_kernels.attention.query_key.probabilities import clamped_length


@triton.jit(do_not_specialize=BACKWARD_RUNTIME)
def pair_key_bwd(
    student_query,  # (B, N, Tq, Ds)
    student_key,  # (B, N_kv, Tk, Ds)
    teacher_query,  # (B, N, Tq, Dt)
    teacher_key,  # (B, N_kv, Tk, Dt)
    query_lengths,
    key_lengths,
    logs,  # (B, N, 5, Tq)
    statistics,  # (B, STATISTICS, N, statistic rows), or None
    upstream,  # (B, N) or, with a step of 0, one number
    delta,  # (B, N, Tq), or None
    gradient,  # (B, N_kv, Tk, Ds), contiguous
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
    student_scale,
    teacher_scale,
    heads,
    student_group,
    teacher_group,
    student_units,
    teacher_units,
    queries,
    keys,
    inverse_temperature,
    statistic_rows,
    upstream_step,
    upstream_factor,
    MIXTURE: tl.constexpr,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    STUDENT_OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    PRODUCT_OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZE: tl.constexpr,  # of a head; longer than BLOCK_D, it is read in parts
    BLOCK_D: tl.constexpr,
):
    student_size = student_units * UNIT
    teacher_size = teacher_units * UNIT
    key_heads = heads // student_group
    key_blocks = tl.cdiv(keys, BLOCK_K)
    key_block = tl.program_id(0) % key_blocks
    key_head = (tl.program_id(0) // key_blocks) % key_heads
    sentence = tl.program_id(0) // (key_blocks * key_heads)
    first_key = key_block * BLOCK_K
    key = first_key + tl.arange(0, BLOCK_K)
    last_key = clamped_length(key_lengths, sentence, keys)
    row_end = queries
    if not INCLUDE:
        row_end = clamped_length(query_lengths, sentence, queries)
    walked = tl.where(first_key < last_key, row_end, 0)
    low = 0
    if CAUSAL:
        low = first_key // BLOCK_Q * BLOCK_Q
    own_student_key = (
        student_key,
        (student_key_batch, student_key_head, student_key_row, student_key_size),
        key_head,
        student_size,
    )
    mine = whole_rows(own_student_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    total = tl.zeros((BLOCK_K, SIZE), tl.float32)
    for member in range(student_group):
        head = key_head * student_group + member
        from_above = (sentence.to(tl.int64) * heads + head) * upstream_step
        factor = tl.load(upstream + from_above) * upstream_factor
        own_student_query = (
            student_query,
            (student_query_batch, student_query_head, student_query_row, student_query_size),
            head,
            student_size,
        )
        own_teacher_query = (
            teacher_query,
            (teacher_query_batch, teacher_query_head, teacher_query_row, teacher_query_size),
            head,
            teacher_size,
        )
        own_teacher_key = (
            teacher_key,
            (teacher_key_batch, teacher_key_head, teacher_key_row, teacher_key_size),
            head // teacher_group,
            teacher_size,
        )
        theirs = whole_rows(
            own_teacher_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D
        )
        for first in range(low, walked, BLOCK_Q):
            row = first + tl.arange(0, BLOCK_Q)
            attended = attended_cells(row, row_end, key, last_key, CAUSAL)
            block = (sentence, row, row_end, key, last_key, attended)
            tile = whole_rows(
                own_teacher_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D
            )
            a = masked_scores(
                tile, theirs, own_teacher_query, own_teacher_key, block, teacher_scale,
                UNIT, CONTIGUOUS, TEACHER_OPERAND, BLOCK_D,
            )  # fmt: skip
            tile = whole_rows(
                own_student_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D
            )
            m = masked_scores(
                tile, mine, own_student_query, own_student_key, block, student_scale,
                UNIT, CONTIGUOUS, STUDENT_OPERAND, BLOCK_D,
            )  # fmt: skip
            forward = load_forward(
                logs, statistics, sentence, head, heads, row, row_end, queries, statistic_rows
            )
            probability, change = probability_and_gradient(
                m, a, attended, forward, factor, inverse_temperature, MIXTURE
            )
            if delta is not None:
                place = (sentence.to(tl.int64) * heads + head) * queries + row
                known = tl.load(delta + place, mask=row < row_end, other=0.0)
                change = change - known[:, None] * probability
            if SIZE > BLOCK_D:
                tile = load_rows(
                    own_student_query, sentence, row, row_end, 0, UNIT, CONTIGUOUS, SIZE
                )
            total = tl.dot(
                tl.trans(change.to(PRODUCT_OPERAND)),
                tile.to(PRODUCT_OPERAND),
                total,
                input_precision=PRECISION,
            )
    place = (sentence.to(tl.int64) * key_heads + key_head) * keys + key
    store_gradient(gradient, total * student_scale, place, key, keys, student_size, SIZE)
