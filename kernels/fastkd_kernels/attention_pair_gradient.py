"""Head against head, backward: dQ by blocks of queries, without maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention_numerics import softmax_difference
from fastkd_kernels.attention_pair import (
    LOG_SMALLEST,
    RUNTIME,
    attended_cells,
    load_rows,
    masked_scores,
)
from fastkd_kernels.attention_probabilities import clamped_length

BACKWARD_RUNTIME = [*RUNTIME, "statistic_rows"]


@triton.jit
def load_statistics(logs, statistics, sentence, head, heads, row, row_end, queries, statistic_rows):
    """What a block of rows keeps from the forward, (R,) each."""
    mask = row < row_end
    here = (sentence.to(tl.int64) * heads + head) * 5 * queries + row
    student_max = tl.load(logs + here, mask=mask, other=0.0)
    student_log = tl.load(logs + here + queries, mask=mask, other=0.0)
    teacher_max = tl.load(logs + here + 2 * queries, mask=mask, other=0.0)
    teacher_log = tl.load(logs + here + 3 * queries, mask=mask, other=0.0)
    above = tl.load(logs + here + 4 * queries, mask=mask, other=0.0)
    a_log = above
    ratio = above
    if statistics is not None:
        here = (sentence.to(tl.int64) * 2 * heads + head) * statistic_rows
        here = here + tl.where(statistic_rows == queries, row, 0)
        a_log = tl.load(statistics + here, mask=mask, other=0.0)
        ratio = tl.load(
            statistics + here + heads.to(tl.int64) * statistic_rows, mask=mask, other=0.0
        )
    return student_max, student_log, teacher_max, teacher_log, above, a_log, ratio


@triton.jit
def probability_and_gradient(
    m,  # (R, C) student's scores, −inf where not attended
    a,  # (R, C) teacher's
    attended,
    student_max,
    student_log,
    teacher_max,
    teacher_log,
    above,
    a_log,
    ratio,
    factor,
    inverse_temperature,
    MIXTURE: tl.constexpr,
):
    """P, and the gradient of the scores (`mixture`) or P ∘ the gradient of P (`map`, `row`)."""
    m = m - student_max[:, None] - student_log[:, None]
    a = a - teacher_max[:, None] - teacher_log[:, None]
    probability = tl.exp(m)
    if MIXTURE:
        a = tl.where(attended, a, 0.0)
        m = tl.where(attended, m, 0.0)
        near = softmax_difference(a, m, tl.zeros_like(above)[:, None], tl.zeros_like(a))
        goal = tl.where(m >= LOG_SMALLEST, tl.exp(a), 0.0)
        gradient = tl.where(above[:, None] == 1, near, probability * above[:, None] - goal)
    else:
        difference = softmax_difference(
            tl.exp(a) * inverse_temperature,
            probability * inverse_temperature,
            a_log[:, None],
            ratio[:, None],
        )
        gradient = probability * difference * inverse_temperature
    return probability, tl.where(attended, gradient * factor, 0.0)


@triton.jit(do_not_specialize=BACKWARD_RUNTIME)
def pair_query_bwd(
    student_query,  # (B, N, Tq, Ds)
    student_key,  # (B, N_kv, Tk, Ds)
    teacher_query,  # (B, N, Tq, Dt)
    teacher_key,  # (B, N_kv, Tk, Dt)
    query_lengths,
    key_lengths,
    logs,  # (B, N, 5, Tq)
    statistics,  # (B, 2, N, statistic rows), or None
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
    student_size = student_units * UNIT
    teacher_size = teacher_units * UNIT
    row_blocks = tl.cdiv(queries, BLOCK_Q)
    row_block = tl.program_id(0) % row_blocks
    head = (tl.program_id(0) // row_blocks) % heads
    sentence = tl.program_id(0) // (row_blocks * heads)
    first_row = row_block * BLOCK_Q
    row = first_row + tl.arange(0, BLOCK_Q)
    row_end = queries
    if not INCLUDE:
        row_end = clamped_length(query_lengths, sentence, queries)
    last_key = clamped_length(key_lengths, sentence, keys)
    seen = tl.where(first_row < row_end, last_key, 0)
    if CAUSAL:
        seen = tl.minimum(seen, first_row + BLOCK_Q)
    mine = load_rows(
        student_query,
        sentence,
        head,
        row,
        row_end,
        student_query_batch,
        student_query_head,
        student_query_row,
        student_query_size,
        student_size,
        UNIT,
        CONTIGUOUS,
        BLOCK_D,
    )
    theirs = load_rows(
        teacher_query,
        sentence,
        head,
        row,
        row_end,
        teacher_query_batch,
        teacher_query_head,
        teacher_query_row,
        teacher_query_size,
        teacher_size,
        UNIT,
        CONTIGUOUS,
        BLOCK_D,
    )
    student_max, student_log, teacher_max, teacher_log, above, a_log, ratio = load_statistics(
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
            sentence,
            head // teacher_group,
            key,
            last_key,
            teacher_key_batch,
            teacher_key_head,
            teacher_key_row,
            teacher_key_size,
            teacher_size,
            UNIT,
            CONTIGUOUS,
            BLOCK_D,
        )
        a = masked_scores(theirs, tile, teacher_scale, attended, TEACHER_OPERAND)
        tile = load_rows(
            student_key,
            sentence,
            head // student_group,
            key,
            last_key,
            student_key_batch,
            student_key_head,
            student_key_row,
            student_key_size,
            student_size,
            UNIT,
            CONTIGUOUS,
            BLOCK_D,
        )
        m = masked_scores(mine, tile, student_scale, attended, STUDENT_OPERAND)
        probability, change = probability_and_gradient(
            m,
            a,
            attended,
            student_max,
            student_log,
            teacher_max,
            teacher_log,
            above,
            a_log,
            ratio,
            factor,
            inverse_temperature,
            MIXTURE,
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
    element = tl.arange(0, BLOCK_D)
    tl.store(
        gradient + place[:, None] * student_size + element[None, :],
        (total * student_scale).to(gradient.dtype.element_ty),
        mask=(row < queries)[:, None] & (element < student_size)[None, :],
    )
