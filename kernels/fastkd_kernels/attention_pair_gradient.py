"""Head against head, backward: dQ by blocks of queries, without maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention_pair_blocks import (
    BACKWARD_RUNTIME,
    attended_cells,
    load_forward,
    load_rows,
    masked_scores,
    probability_and_gradient,
    query_block,
    store_gradient,
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
    upstream,  # (B, N)
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
    BLOCK_D: tl.constexpr,
):
    student_query_strides = (
        student_query_batch,
        student_query_head,
        student_query_row,
        student_query_size,
    )
    student_key_strides = (student_key_batch, student_key_head, student_key_row, student_key_size)
    teacher_query_strides = (
        teacher_query_batch,
        teacher_query_head,
        teacher_query_row,
        teacher_query_size,
    )
    teacher_key_strides = (teacher_key_batch, teacher_key_head, teacher_key_row, teacher_key_size)
    student_size = student_units * UNIT
    teacher_size = teacher_units * UNIT
    sentence, head, row, row_end, last_key, seen = query_block(
        query_lengths, key_lengths, heads, queries, keys, CAUSAL, INCLUDE, BLOCK_Q
    )
    mine = load_rows(
        student_query,
        student_query_strides,
        sentence,
        head,
        row,
        row_end,
        student_size,
        UNIT,
        CONTIGUOUS,
        BLOCK_D,
    )
    theirs = load_rows(
        teacher_query,
        teacher_query_strides,
        sentence,
        head,
        row,
        row_end,
        teacher_size,
        UNIT,
        CONTIGUOUS,
        BLOCK_D,
    )
    forward = load_forward(
        logs, statistics, sentence, head, heads, row, row_end, queries, statistic_rows
    )
    factor = tl.load(upstream + sentence.to(tl.int64) * heads + head)

    delta_sum = tl.zeros((BLOCK_Q,), tl.float32)
    total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    # Two walks where the gradient of the scores needs the sum over a row: delta, then dQ.
    walked = seen if MIXTURE else tl.cdiv(seen, BLOCK_K) * BLOCK_K * 2
    half = 0 if MIXTURE else tl.cdiv(seen, BLOCK_K) * BLOCK_K
    for step in range(0, walked, BLOCK_K):
        first = tl.where(step < half, step, step - half)
        key = first + tl.arange(0, BLOCK_K)
        attended = attended_cells(row, row_end, key, last_key, CAUSAL)
        tile = load_rows(
            teacher_key,
            teacher_key_strides,
            sentence,
            head // teacher_group,
            key,
            last_key,
            teacher_size,
            UNIT,
            CONTIGUOUS,
            BLOCK_D,
        )
        a = masked_scores(theirs, tile, teacher_scale, attended, TEACHER_OPERAND)
        tile = load_rows(
            student_key,
            student_key_strides,
            sentence,
            head // student_group,
            key,
            last_key,
            student_size,
            UNIT,
            CONTIGUOUS,
            BLOCK_D,
        )
        m = masked_scores(mine, tile, student_scale, attended, STUDENT_OPERAND)
        probability, change = probability_and_gradient(
            m, a, attended, forward, factor, inverse_temperature, MIXTURE
        )
        if step < half:
            delta_sum += tl.sum(change, 1)
        else:
            change = change - delta_sum[:, None] * probability
            total = tl.dot(
                change.to(PRODUCT_OPERAND),
                tile.to(PRODUCT_OPERAND),
                total,
                input_precision=PRECISION,
            )
    place = (sentence.to(tl.int64) * heads + head) * queries + row
    if delta is not None:
        tl.store(delta + place, delta_sum, mask=row < queries)
    store_gradient(gradient, total * student_scale, place, row, queries, student_size, BLOCK_D)
