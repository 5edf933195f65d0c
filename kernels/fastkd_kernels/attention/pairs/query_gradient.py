"""Head against head, backward: dQ by blocks of queries, without maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention.pairs.blocks import (
    BACKWARD_RUNTIME,
    add_product,
    attended_cells,
    factor_of,
    load_forward,
    masked_scores,
    probability_and_gradient,
    query_block,
    store_gradient,
    whole_rows,
)


@triton.jit(do_not_specialize=BACKWARD_RUNTIME)
def pair_query_bwd(
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
    gradient,  # (B, N, Tq, Ds), contiguous
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
    student_size, teacher_size = student_units * UNIT, teacher_units * UNIT
    sentence, head, row, row_end, last_key, seen = query_block(
        query_lengths, key_lengths, heads, queries, keys, CAUSAL, INCLUDE, BLOCK_Q
    )
    own_student_query = (
        student_query,
        (student_query_batch, student_query_head, student_query_row, student_query_size),
        head, student_size,
    )  # fmt: skip
    own_student_key = (
        student_key,
        (student_key_batch, student_key_head, student_key_row, student_key_size),
        head // student_group, student_size,
    )  # fmt: skip
    own_teacher_query = (
        teacher_query,
        (teacher_query_batch, teacher_query_head, teacher_query_row, teacher_query_size),
        head, teacher_size,
    )  # fmt: skip
    own_teacher_key = (
        teacher_key,
        (teacher_key_batch, teacher_key_head, teacher_key_row, teacher_key_size),
        head // teacher_group, teacher_size,
    )  # fmt: skip
    mine = whole_rows(own_student_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    theirs = whole_rows(own_teacher_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    forward = load_forward(
        logs, statistics, sentence, head, heads, row, row_end, queries, statistic_rows
    )
    factor = factor_of(upstream, sentence, head, heads, upstream_step, upstream_factor)
    delta_sum = tl.zeros((BLOCK_Q,), tl.float32)
    total = tl.zeros((BLOCK_Q, SIZE), tl.float32)
    # Two walks where the gradient of the scores needs the sum over a row: delta, then dQ.
    walked = seen if MIXTURE else tl.cdiv(seen, BLOCK_K) * BLOCK_K * 2
    half = 0 if MIXTURE else tl.cdiv(seen, BLOCK_K) * BLOCK_K
    for step in range(0, walked, BLOCK_K):
        first = tl.where(step < half, step, step - half)
        key = first + tl.arange(0, BLOCK_K)
        attended = attended_cells(row, row_end, key, last_key, CAUSAL)
        block = (sentence, row, row_end, key, last_key, attended)
        tile = whole_rows(own_teacher_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
        a = masked_scores(
            theirs, tile, own_teacher_query, own_teacher_key, block, teacher_scale,
            UNIT, CONTIGUOUS, TEACHER_OPERAND, BLOCK_D,
        )  # fmt: skip
        tile = whole_rows(own_student_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
        m = masked_scores(
            mine, tile, own_student_query, own_student_key, block, student_scale,
            UNIT, CONTIGUOUS, STUDENT_OPERAND, BLOCK_D,
        )  # fmt: skip
        probability, change = probability_and_gradient(
            m, a, attended, forward, factor, inverse_temperature, MIXTURE
        )
        if step < half:
            delta_sum += tl.sum(change, 1)
        else:
            change = change - delta_sum[:, None] * probability
            total = add_product(
                total, change, tile, own_student_key, sentence, key, last_key, UNIT, CONTIGUOUS,
                PRODUCT_OPERAND, PRECISION, SIZE, BLOCK_D,
            )  # fmt: skip
    place = (sentence.to(tl.int64) * heads + head) * queries + row
    if delta is not None:
        tl.store(delta + place, delta_sum, mask=row < queries)
    store_gradient(gradient, total * student_scale, place, row, queries, student_size, SIZE)
