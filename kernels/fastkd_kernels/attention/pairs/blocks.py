"""What the kernels of head against head share: blocks of rows, scores and their gradient."""

import triton
import triton.language as tl

from fastkd_kernels.attention.numerics import STATISTICS, load_statistics, softmax_difference
from fastkd_kernels.attention.query_key.probabilities import clamped_length

LOG_SMALLEST = tl.constexpr(-87.33654475055310)  # log(2⁻¹²⁶)

RUNTIME = (
    "student_query_batch student_query_head student_query_row student_query_size "
    "student_key_batch student_key_head student_key_row student_key_size "
    "teacher_query_batch teacher_query_head teacher_query_row teacher_query_size "
    "teacher_key_batch teacher_key_head teacher_key_row teacher_key_size "
    "student_scale teacher_scale heads student_group teacher_group student_units "
    "teacher_units queries keys inverse_temperature"
).split()
BACKWARD_RUNTIME = [*RUNTIME, "statistic_rows", "upstream_step", "upstream_factor"]


@triton.jit
def load_rows(
    side,  # (tensor, (batch, head, row, size) strides, head, size)
    sentence,
    row,
    end,
    first,
    UNIT: tl.constexpr,  # of all strides but the last
    CONTIGUOUS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(rows, BLOCK_D) of queries or keys from element `first` on; zeros from row `end` on."""
    tensor, strides, head, size = side
    element = first + tl.arange(0, BLOCK_D)
    across = element if CONTIGUOUS else element.to(tl.int64) * strides[3]
    base = tensor + (sentence.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]) * UNIT
    return tl.load(
        base + row.to(tl.int64)[:, None] * (strides[2].to(tl.int64) * UNIT) + across[None, :],
        mask=(row < end)[:, None] & (element < size)[None, :],
        other=0.0,
    )


@triton.jit
def whole_rows(
    side,
    sentence,
    row,
    end,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The rows, or None where they are longer than a block: `masked_scores` reads parts of them."""
    rows = None
    if SIZE <= BLOCK_D:
        rows = load_rows(side, sentence, row, end, 0, UNIT, CONTIGUOUS, BLOCK_D)
    return rows


@triton.jit
def query_block(
    query_lengths,
    key_lengths,
    heads,
    queries,
    keys,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """(sentence, head, rows, their end, the keys' end, keys to walk) of a program of queries."""
    row_blocks = tl.cdiv(queries, BLOCK_Q)
    first_row = (tl.program_id(0) % row_blocks) * BLOCK_Q
    head = (tl.program_id(0) // row_blocks) % heads
    sentence = tl.program_id(0) // (row_blocks * heads)
    row_end = queries
    if not INCLUDE:
        row_end = clamped_length(query_lengths, sentence, queries)
    last_key = clamped_length(key_lengths, sentence, keys)
    seen = tl.where(first_row < row_end, last_key, 0)
    if CAUSAL:
        seen = tl.minimum(seen, first_row + BLOCK_Q)
    return sentence, head, first_row + tl.arange(0, BLOCK_Q), row_end, last_key, seen


@triton.jit
def key_block(
    query_lengths,
    key_lengths,
    key_heads,
    queries,
    keys,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(sentence, head, keys, their end, queries to walk: from, to, their end) of a program of
    keys."""
    key_blocks = tl.cdiv(keys, BLOCK_K)
    first_key = (tl.program_id(0) % key_blocks) * BLOCK_K
    key_head = (tl.program_id(0) // key_blocks) % key_heads
    sentence = tl.program_id(0) // (key_blocks * key_heads)
    last_key = clamped_length(key_lengths, sentence, keys)
    row_end = queries
    if not INCLUDE:
        row_end = clamped_length(query_lengths, sentence, queries)
    walked = tl.where(first_key < last_key, row_end, 0)
    low = 0
    if CAUSAL:
        low = first_key // BLOCK_Q * BLOCK_Q
    return sentence, key_head, first_key + tl.arange(0, BLOCK_K), last_key, low, walked, row_end


@triton.jit
def attended_cells(row, row_end, key, last_key, CAUSAL: tl.constexpr):
    cells = (row < row_end)[:, None] & (key < last_key)[None, :]
    if CAUSAL:
        cells = cells & (key[None, :] <= row[:, None])
    return cells


@triton.jit
def masked_scores(
    query_rows,  # as `whole_rows` gave them
    key_rows,
    query,  # sides of `load_rows`
    key,
    block,  # sentence, rows, their end, columns, their end, which attend to which
    scale,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(R, C) scores; −inf where not attended."""
    sentence, row, row_end, column, last_key, attended = block
    if query_rows is None:
        scores = tl.zeros(attended.shape, tl.float32)
        for first in range(0, query[3], BLOCK_D):
            own = load_rows(query, sentence, row, row_end, first, UNIT, CONTIGUOUS, BLOCK_D)
            other = load_rows(key, sentence, column, last_key, first, UNIT, CONTIGUOUS, BLOCK_D)
            other = tl.trans(other.to(OPERAND))
            scores = tl.dot(own.to(OPERAND), other, scores, input_precision="ieee")
    else:
        other = tl.trans(key_rows.to(OPERAND))
        scores = tl.dot(query_rows.to(OPERAND), other, input_precision="ieee")
    return tl.where(attended, scores * scale, float("-inf"))


@triton.jit
def load_forward(logs, statistics, sentence, head, heads, row, row_end, queries, statistic_rows):
    """What a block of rows keeps from the forward: (R,) of `logs`, and of `statistics` if any."""
    mask = row < row_end
    here = (sentence.to(tl.int64) * heads + head) * 5 * queries + row
    kept = (
        tl.load(logs + here, mask=mask, other=0.0),
        tl.load(logs + here + queries, mask=mask, other=0.0),
        tl.load(logs + here + 2 * queries, mask=mask, other=0.0),
        tl.load(logs + here + 3 * queries, mask=mask, other=0.0),
        tl.load(logs + here + 4 * queries, mask=mask, other=0.0),
    )
    zero = tl.zeros_like(kept[4])
    known = (zero, zero + 1, zero, zero + 1, zero)  # of logits that are log-probabilities
    if statistics is not None:
        here = (sentence.to(tl.int64) * STATISTICS * heads + head) * statistic_rows
        here = here + tl.where(statistic_rows == queries, row, 0)
        known = load_statistics(statistics + here, heads.to(tl.int64) * statistic_rows, mask)
    return kept, known


@triton.jit
def load_delta(delta, sentence, head, heads, row, row_end, queries):
    place = (sentence.to(tl.int64) * heads + head) * queries + row
    return tl.load(delta + place, mask=row < row_end, other=0.0)


@triton.jit
def probability_and_gradient(
    m,  # (R, C) student's scores, −inf where not attended
    a,  # (R, C) teacher's
    attended,
    forward,  # as `load_forward` found it
    factor,
    inverse_temperature,
    MIXTURE: tl.constexpr,
):
    """P, and the gradient of the scores (`mixture`) or P ∘ the gradient of P (`map`, `row`)."""
    student_max, student_log, teacher_max, teacher_log, above = forward[0]
    a_base, a_scale, m_base, m_scale, ratio = forward[1]
    m = m - student_max[:, None] - student_log[:, None]
    a = a - teacher_max[:, None] - teacher_log[:, None]
    probability = tl.exp(m)
    if MIXTURE:
        a = tl.where(attended, a, 0.0)
        m = tl.where(attended, m, 0.0)
        near = softmax_difference(a, m, a_base, a_scale, m_base, m_scale, ratio)
        goal = tl.where(m >= LOG_SMALLEST, tl.exp(a), 0.0)
        gradient = tl.where(above[:, None] == 1, near, probability * above[:, None] - goal)
    else:
        a = tl.exp(a) * inverse_temperature
        m = probability * inverse_temperature
        difference = softmax_difference(a, m, a_base, a_scale, m_base, m_scale, ratio)
        gradient = probability * difference * inverse_temperature
    return probability, tl.where(attended, gradient * factor, 0.0)


@triton.jit
def factor_of(upstream, sentence, head, heads, step, factor):
    """What comes from above, by a map or for all, times `factor`."""
    return tl.load(upstream + (sentence.to(tl.int64) * heads + head) * step) * factor


@triton.jit
def add_product(
    total,
    change,  # (R, C)
    rows,  # (C, SIZE) as `whole_rows` gave them
    side,
    sentence,
    row,
    end,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """total + change · rows"""
    if SIZE > BLOCK_D:
        rows = load_rows(side, sentence, row, end, 0, UNIT, CONTIGUOUS, SIZE)
    return tl.dot(change.to(OPERAND), rows.to(OPERAND), total, input_precision=PRECISION)


@triton.jit
def store_gradient(gradient, total, place, row, end, size, SIZE: tl.constexpr):
    element = tl.arange(0, SIZE)
    tl.store(
        gradient + place[:, None] * size + element[None, :],
        total.to(gradient.dtype.element_ty),
        mask=(row < end)[:, None] & (element < size)[None, :],
    )
