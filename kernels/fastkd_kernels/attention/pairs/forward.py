"""Head against head, forward: softmaxes, divergence and what the gradient needs, without maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention.numerics import (
    FIELDS,
    STATISTICS,
    add_exponentials,
    finish,
    gather,
    store_statistics,
)
from fastkd_kernels.attention.pairs.blocks import (
    LOG_SMALLEST,
    RUNTIME,
    attended_cells,
    masked_scores,
    query_block,
    whole_rows,
)


@triton.jit(do_not_specialize=RUNTIME)
def pair_fwd(
    student_query,  # (B, N, Tq, Ds)
    student_key,  # (B, N_kv, Tk, Ds)
    teacher_query,  # (B, N, Tq, Dt)
    teacher_key,  # (B, N_kv, Tk, Dt)
    query_lengths,
    key_lengths,
    logs,  # (B, N, 5, Tq): maximum and log-sum of student and teacher, mass above the floor
    statistics,  # (B, STATISTICS, N, Tq), or None with `partials`
    partials,  # (B, Tq, FIELDS, N), or None
    loss,  # (B, N, Tq), or None with `partials`
    student_query_batch, student_query_head, student_query_row, student_query_size,
    student_key_batch, student_key_head, student_key_row, student_key_size,
    teacher_query_batch, teacher_query_head, teacher_query_row, teacher_query_size,
    teacher_key_batch, teacher_key_head, teacher_key_row, teacher_key_size,
    student_scale, teacher_scale, heads, student_group, teacher_group, student_units,
    teacher_units, queries, keys, inverse_temperature,
    MIXTURE: tl.constexpr,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    STUDENT_OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZE: tl.constexpr,  # of a head; longer than BLOCK_D, it is read in parts
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    student_size = student_units * UNIT
    teacher_size = teacher_units * UNIT
    sentence, head, row, row_end, last_key, seen = query_block(
        query_lengths, key_lengths, heads, queries, keys, CAUSAL, INCLUDE, BLOCK_Q
    )
    own_student_query = (
        student_query, (student_query_batch, student_query_head, student_query_row,
        student_query_size), head, student_size,
    )  # fmt: skip
    own_student_key = (
        student_key, (student_key_batch, student_key_head, student_key_row,
        student_key_size), head // student_group, student_size,
    )  # fmt: skip
    own_teacher_query = (
        teacher_query, (teacher_query_batch, teacher_query_head, teacher_query_row,
        teacher_query_size), head, teacher_size,
    )  # fmt: skip
    own_teacher_key = (
        teacher_key, (teacher_key_batch, teacher_key_head, teacher_key_row,
        teacher_key_size), head // teacher_group, teacher_size,
    )  # fmt: skip
    mine = whole_rows(own_student_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    theirs = whole_rows(own_teacher_query, sentence, row, row_end, UNIT, CONTIGUOUS, SIZE, BLOCK_D)

    sides = own_student_query, own_student_key, own_teacher_query, own_teacher_key
    scales = student_scale, teacher_scale
    rows = sentence, row, row_end, last_key
    a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift, lowest = first_walk(
        mine, theirs, sides, scales, rows, seen, MIXTURE, CAUSAL, UNIT, CONTIGUOUS,
        STUDENT_OPERAND, TEACHER_OPERAND, BLOCK_K, SIZE, BLOCK_D,
    )  # fmt: skip

    # Maxima and logarithms stay apart: scores less their maximum lose nothing.
    student_max = tl.where(m_sum > 0, m_max, 0.0)
    teacher_max = tl.where(a_sum > 0, a_max, 0.0)
    student_sum = tl.where(m_sum > 0, m_sum, 1.0)
    teacher_sum = tl.where(a_sum > 0, a_sum, 1.0)
    student_log = tl.log(student_sum)
    teacher_log = tl.log(teacher_sum)
    above = tl.full((BLOCK_Q,), 1.0, tl.float32)
    base = inverse_temperature / teacher_sum  # the largest of a, and of m
    highest = inverse_temperature / student_sum
    again = keys if INCLUDE else seen
    if MIXTURE:
        _, _, _, _, _, divergence = finish(
            teacher_max, a_sum, d_sum, e_sum, student_max, m_sum, d_most, shift
        )
        # A second walk only where some probability of the student lies below the floor.
        lowest = lowest - student_max - student_log
        again = tl.where(tl.min(lowest, 0) < LOG_SMALLEST, seen, 0)
    a_sum, m_sum, d_sum, e_sum, d_most, shift = second_walk(
        mine, theirs, sides, scales, rows, again, keys,
        (student_max, student_log, teacher_max, teacher_log), (base, highest),
        (d_sum, e_sum, d_most, shift), inverse_temperature, MIXTURE, CAUSAL, INCLUDE, UNIT,
        CONTIGUOUS, STUDENT_OPERAND, TEACHER_OPERAND, BLOCK_K, SIZE, BLOCK_D,
    )  # fmt: skip
    place = (sentence.to(tl.int64) * heads + head) * queries + row
    mask = row < queries
    if MIXTURE:
        low = lowest < LOG_SMALLEST
        divergence = tl.where(low, a_sum, divergence)
        above = tl.where(low, m_sum, above)
    elif partials is None:
        a_base, a_scale, m_base, m_scale, ratio, divergence = finish(
            base, a_sum, d_sum, e_sum, highest, m_sum, d_most, shift
        )
        here = statistics + (sentence.to(tl.int64) * STATISTICS * heads + head) * queries + row
        step = heads.to(tl.int64) * queries
        store_statistics(here, step, a_base, a_scale, m_base, m_scale, ratio, mask)
    if partials is None:
        tl.store(loss + place, divergence, mask=mask)
    else:
        here = partials + (sentence.to(tl.int64) * queries + row) * FIELDS * heads + head
        tl.store(here, base, mask=mask)
        tl.store(here + heads, a_sum, mask=mask)
        tl.store(here + 2 * heads, d_sum, mask=mask)
        tl.store(here + 3 * heads, e_sum, mask=mask)
        tl.store(here + 4 * heads, highest, mask=mask)
        tl.store(here + 5 * heads, m_sum, mask=mask)
        tl.store(here + 6 * heads, d_most, mask=mask)
        tl.store(here + 7 * heads, shift, mask=mask)
    here = (sentence.to(tl.int64) * heads + head) * 5 * queries + row
    tl.store(logs + here, student_max, mask=mask)
    tl.store(logs + here + queries, student_log, mask=mask)
    tl.store(logs + here + 2 * queries, teacher_max, mask=mask)
    tl.store(logs + here + 3 * queries, teacher_log, mask=mask)
    tl.store(logs + here + 4 * queries, above, mask=mask)


@triton.jit
def both_logits(
    mine,  # rows of the student's queries, as `whole_rows` returns them
    theirs,  # of the teacher's
    sides,  # (student's queries, its keys, the teacher's queries, its keys)
    scales,  # (student's, teacher's)
    rows,  # (sentence, row (BLOCK_Q,), end of the rows, of the keys)
    first,
    CAUSAL: tl.constexpr,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    STUDENT_OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(teacher's scores, student's, (BLOCK_Q, BLOCK_K) each; which are attended to) of a block."""
    sentence, row, row_end, last_key = rows
    student_query, student_key, teacher_query, teacher_key = sides
    student_scale, teacher_scale = scales
    key = first + tl.arange(0, BLOCK_K)
    attended = attended_cells(row, row_end, key, last_key, CAUSAL)
    block = (sentence, row, row_end, key, last_key, attended)
    tile = whole_rows(student_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    m = masked_scores(
        mine, tile, student_query, student_key, block, student_scale, UNIT, CONTIGUOUS,
        STUDENT_OPERAND, BLOCK_D,
    )  # fmt: skip
    tile = whole_rows(teacher_key, sentence, key, last_key, UNIT, CONTIGUOUS, SIZE, BLOCK_D)
    a = masked_scores(
        theirs, tile, teacher_query, teacher_key, block, teacher_scale, UNIT, CONTIGUOUS,
        TEACHER_OPERAND, BLOCK_D,
    )  # fmt: skip
    return a, m, attended


@triton.jit
def first_walk(
    mine,
    theirs,
    sides,
    scales,
    rows,
    seen,
    MIXTURE: tl.constexpr,
    CAUSAL: tl.constexpr,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    STUDENT_OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Maxima and sums of both softmaxes; of `mixture` what its divergence is made of."""
    row = rows[1]
    a_max = tl.full(row.shape, float("-inf"), tl.float32)
    a_sum = tl.zeros(row.shape, tl.float32)
    d_sum = tl.zeros(row.shape, tl.float32)
    e_sum = tl.zeros(row.shape, tl.float32)
    m_max = tl.full(row.shape, float("-inf"), tl.float32)
    m_sum = tl.zeros(row.shape, tl.float32)
    d_most = tl.zeros(row.shape, tl.float32)
    shift = tl.zeros(row.shape, tl.float32)
    lowest = tl.full(row.shape, float("inf"), tl.float32)
    for first in range(0, seen, BLOCK_K):
        a, m, attended = both_logits(
            mine, theirs, sides, scales, rows, first, CAUSAL, UNIT, CONTIGUOUS, STUDENT_OPERAND,
            TEACHER_OPERAND, BLOCK_K, SIZE, BLOCK_D,
        )  # fmt: skip
        if MIXTURE:
            lowest = tl.minimum(lowest, tl.min(tl.where(attended, m, float("inf")), 1))
            m = tl.where(attended, m, 0.0)
            new = tl.maximum(a_max, tl.max(a, 1))
            base = tl.where(new == float("-inf"), 0.0, new)
            old = tl.exp(a_max - base)
            a = tl.where(attended, a, 0.0)
            if first == 0:
                cells = tl.maximum(tl.sum(attended.to(tl.float32), 1), 1.0)
                shift = tl.sum(m - a, 1) / cells
            more, more_d, more_e, most = gather(a, m, attended, shift, base)
            a_max = new
            a_sum = a_sum * old + more
            d_sum = d_sum * old + more_d
            e_sum = e_sum * old + more_e
            d_most = tl.maximum(d_most, most)
        else:
            a_max, a_sum = add_exponentials(a_max, a_sum, a, attended)
        m_max, m_sum = add_exponentials(m_max, m_sum, m, attended)
    return a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift, lowest


@triton.jit
def second_walk(
    mine,
    theirs,
    sides,
    scales,
    rows,
    again,  # keys that are walked
    keys,
    known,  # (maximum and log-sum of the student, of the teacher)
    bases,  # (of exponents of the teacher's probabilities, of the student's)
    sums,  # (Σw·d, Σw·(expm1(d) − d), max |d|, shift), to start from
    inverse_temperature,
    MIXTURE: tl.constexpr,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    STUDENT_OPERAND: tl.constexpr,
    TEACHER_OPERAND: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`row`: the state over probabilities; `mixture`: the divergence with the floor, and the mass
    above it, as the first two."""
    _, row, row_end, _ = rows
    student_max, student_log, teacher_max, teacher_log = known
    base, highest = bases
    d_sum, e_sum, d_most, shift = sums
    a_sum = tl.zeros(row.shape, tl.float32)
    m_sum = tl.zeros(row.shape, tl.float32)
    for first in range(0, again, BLOCK_K):
        a, m, attended = both_logits(
            mine, theirs, sides, scales, rows, first, CAUSAL, UNIT, CONTIGUOUS, STUDENT_OPERAND,
            TEACHER_OPERAND, BLOCK_K, SIZE, BLOCK_D,
        )  # fmt: skip
        a = a - teacher_max[:, None] - teacher_log[:, None]
        m = m - student_max[:, None] - student_log[:, None]
        key = first + tl.arange(0, BLOCK_K)
        weight = tl.exp(a)
        if MIXTURE:
            part = weight * (a - tl.maximum(m, LOG_SMALLEST))
            a_sum += tl.sum(tl.where(weight > 0, part, 0.0), 1)
            m_sum += tl.sum(tl.where(m >= LOG_SMALLEST, weight, 0.0), 1)
        else:
            a = weight * inverse_temperature
            m = tl.exp(m) * inverse_temperature
            inside = attended
            if INCLUDE:
                inside = (row < row_end)[:, None] & (key < keys)[None, :]
            if first == 0:
                cells = tl.maximum(tl.sum(inside.to(tl.float32), 1), 1.0)
                shift = tl.sum(tl.where(inside, m - a, 0.0), 1) / cells
            more, more_d, more_e, most = gather(a, m, inside, shift, base)
            a_sum += more
            d_sum += more_d
            e_sum += more_e
            d_most = tl.maximum(d_most, most)
            m_sum += tl.sum(tl.where(inside, tl.exp(m - highest[:, None]), 0.0), 1)
    return a_sum, m_sum, d_sum, e_sum, d_most, shift
