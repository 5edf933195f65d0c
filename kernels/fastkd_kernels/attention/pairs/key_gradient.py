"""Head against head, backward: dK by blocks of keys, without maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention.pairs.blocks import (
    BACKWARD_RUNTIME,
    add_product,
    attended_cells,
    factor_of,
    key_block,
    load_delta,
    load_forward,
    masked_scores,
    probability_and_gradient,
    store_gradient,
    whole_rows,
)


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
    student_size, teacher_size = student_units * UNIT, teacher_units * UNIT
    key_heads = heads // student_group
    sentence, key_head, key, last_key, low, walked, row_end = key_block(
        query_lengths, key_lengths, key_heads, queries, keys, CAUSAL, INCLUDE, BLOCK_Q, BLOCK_K
    )
    own_student_key = (
        student_key,
        (student_key_batch, student_key_head, student_key_row, student_key_size),
        key_head, student_size,
    )  # fmt: skip
    mine = whole_rows(own_student_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    total = tl.zeros((BLOCK_K, SIZE), tl.float32)
    for member in range(student_group):
        head = key_head * student_group + member
        factor = factor_of(upstream, sentence, head, heads, upstream_step, upstream_factor)
        own_student_query = (
            student_query,
            (student_query_batch, student_query_head, student_query_row, student_query_size),
            head, student_size,
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
        held = whole_rows(own_teacher_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
        for first in range(low, walked, BLOCK_Q):
            row = first + tl.arange(0, BLOCK_Q)
            attended = attended_cells(row, row_end, key, last_key, CAUSAL)
            block = (sentence, row, row_end, key, last_key, attended)
            tile = whole_rows(
                own_teacher_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D
            )
            a = masked_scores(
                tile, held, own_teacher_query, own_teacher_key, block, teacher_scale,
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
                known = load_delta(delta, sentence, head, heads, row, row_end, queries)
                change = change - known[:, None] * probability
            total = add_product(
                total, tl.trans(change.to(PRODUCT_OPERAND)), tile, own_student_query, sentence,
                row, row_end, UNIT, CONTIGUOUS, PRODUCT_OPERAND, PRECISION, SIZE, BLOCK_D,
            )  # fmt: skip
    place = (sentence.to(tl.int64) * key_heads + key_head) * keys + key
    store_gradient(gradient, total * student_scale, place, key, keys, student_size, SIZE)
