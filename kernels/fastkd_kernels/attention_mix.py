"""Mixing of all student maps into each teacher map, their divergence and its gradient."""

import triton
import triton.language as tl

from fastkd_kernels.attention_numerics import (
    FIELDS,
    finish,
    gather,
    merge,
)
from fastkd_kernels.attention_probabilities import clamped_length

RUNTIME = (
    "student_sentence student_head student_row student_key teacher_sentence teacher_head "
    "teacher_row teacher_key student_maps teacher_maps queries keys first_sentence first_row rows "
    "key_blocks row_groups rows_each segments segment_keys inverse_temperature parts part"
).split()


@triton.jit
def row_total(block_max, block_sum, place, key_blocks, used, head, heads, BLOCK_H: tl.constexpr):
    """A row's maximum and 1 / its sum of exp2, from those of its blocks; (BLOCK_H,) each."""
    high = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    for start in range(0, used, 16):
        block = start + tl.arange(0, 16)
        mask = (head < heads)[:, None] & (block < used)[None, :]
        here = place[:, None] * key_blocks + block[None, :]
        maximum = tl.load(block_max + here, mask=mask, other=float("-inf"))  # (BLOCK_H, 16)
        part = tl.load(block_sum + here, mask=mask, other=0.0)
        # A block that a row sees nothing of has the maximum 0 and the sum 0.
        maximum = tl.where(part > 0, maximum, float("-inf"))
        new = tl.maximum(high, tl.max(maximum, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(high - base) + tl.sum(part * tl.exp2(maximum - base[:, None]), 1)
        high = new
    return tl.where(total > 0, high, 0.0), 1 / tl.where(total > 0, total, 1.0)


@triton.jit
def load_maps(
    maps,
    head,
    heads,
    key,
    seen,
    head_stride,
    key_stride,
    block_max,
    place,
    key_block,
    key_blocks,
    high,
    inverse,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    """One row's probabilities, (BLOCK_H, BLOCK_K) in float32; 0 from key `seen` on."""
    mask = (head < heads)[:, None] & (key < seen)[None, :]
    across = key if CONTIGUOUS else key.to(tl.int64) * key_stride
    tile = tl.load(
        maps + head.to(tl.int64)[:, None] * (head_stride.to(tl.int64) * UNIT) + across[None, :],
        mask=mask,
        other=0.0,
    ).to(tl.float32)
    if block_max is not None:
        maximum = tl.load(
            block_max + place * key_blocks + key_block, mask=head < heads, other=0.0
        )  # (BLOCK_H,)
        tile = tl.where(mask, tile * (tl.exp2(maximum - high) * inverse)[:, None], 0.0)
    return tile


@triton.jit
def load_weight(weight, teacher_head, head, teacher_maps, student_maps):
    """(BLOCK_J, BLOCK_H)"""
    return tl.load(
        weight + teacher_head[:, None] * student_maps + head[None, :],
        mask=(teacher_head < teacher_maps)[:, None] & (head < student_maps)[None, :],
        other=0.0,
    )


@triton.jit
def row_extent(
    query_lengths,
    key_lengths,
    sentence,
    row,
    row_end,
    queries,
    keys,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
):
    """How many keys a query row attends to and how many cells of it count; both from the left."""
    seen = clamped_length(key_lengths, sentence, keys)
    if CAUSAL:
        seen = tl.minimum(seen, row + 1)
    if INCLUDE:
        counted = keys
    else:
        seen = tl.where(row < clamped_length(query_lengths, sentence, queries), seen, 0)
        counted = seen
    seen = tl.where(row < row_end, seen, 0)
    counted = tl.where(row < row_end, counted, 0)
    return seen, counted


@triton.jit(do_not_specialize=RUNTIME)
def mix_statistics_fwd(
    student,  # (sentences, Ns, rows, keys), by strides
    teacher,  # (sentences, Nt, rows, keys), by strides
    weight,  # (Nt, Ns), or None: head n against head n
    student_max,  # (sentences, Ns, rows, key blocks), or None: the maps are normalised
    student_sum,
    teacher_max,
    teacher_sum,
    query_lengths,
    key_lengths,
    partials,  # (groups, parts, FIELDS, Nt), or None: a program sees its rows whole
    statistics,  # (sentences, 2, Nt, rows), or None with `partials`
    loss,  # (B, Nt, Tq), or None with `partials`
    student_sentence,
    student_head,
    student_row,
    student_key,
    teacher_sentence,
    teacher_head,
    teacher_row,
    teacher_key,
    student_maps,
    teacher_maps,
    queries,
    keys,
    first_sentence,
    first_row,
    rows,
    key_blocks,
    row_groups,
    rows_each,
    segments,
    segment_keys,
    inverse_temperature,
    parts,
    part,  # of the chunk's first program, where a whole map is one group
    PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    segment = program % segments
    row_group = (program // segments) % row_groups
    slot = program // (segments * row_groups)
    sentence = first_sentence + slot
    row_end = tl.minimum(first_row + rows, queries)
    student += slot.to(tl.int64) * student_sentence * STUDENT_UNIT
    teacher += slot.to(tl.int64) * teacher_sentence * TEACHER_UNIT
    head = tl.arange(0, BLOCK_H)
    block_head = tl.arange(0, BLOCK_J)

    for start in range(0, teacher_maps, BLOCK_J):
        rival = start + block_head  # teacher's heads
        if weight is not None:
            mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
        a_max = tl.full((BLOCK_J,), float("-inf"), tl.float32)
        a_sum = tl.zeros((BLOCK_J,), tl.float32)
        d_sum = tl.zeros((BLOCK_J,), tl.float32)
        e_sum = tl.zeros((BLOCK_J,), tl.float32)
        m_max = tl.full((BLOCK_J,), float("-inf"), tl.float32)
        m_sum = tl.zeros((BLOCK_J,), tl.float32)
        d_most = tl.zeros((BLOCK_J,), tl.float32)
        shift = tl.zeros((BLOCK_J,), tl.float32)
        started = 0
        for index in range(rows_each):
            local = row_group * rows_each + index
            row = first_row + local
            seen, counted = row_extent(
                query_lengths, key_lengths, sentence, row, row_end, queries, keys, CAUSAL, INCLUDE
            )
            if PER_ROW:
                a_max = tl.full((BLOCK_J,), float("-inf"), tl.float32)
                a_sum = tl.zeros((BLOCK_J,), tl.float32)
                d_sum = tl.zeros((BLOCK_J,), tl.float32)
                e_sum = tl.zeros((BLOCK_J,), tl.float32)
                m_max = tl.full((BLOCK_J,), float("-inf"), tl.float32)
                m_sum = tl.zeros((BLOCK_J,), tl.float32)
                d_most = tl.zeros((BLOCK_J,), tl.float32)
                started = 0
            student_place = (slot.to(tl.int64) * student_maps + head) * rows + local
            teacher_place = (slot.to(tl.int64) * teacher_maps + rival) * rows + local
            student_high = tl.zeros((BLOCK_H,), tl.float32)
            student_inverse = student_high
            teacher_high = tl.zeros((BLOCK_J,), tl.float32)
            teacher_inverse = teacher_high
            if student_max is not None:
                used = tl.cdiv(seen, KEY_BLOCK)
                student_high, student_inverse = row_total(
                    student_max,
                    student_sum,
                    student_place,
                    key_blocks,
                    used,
                    head,
                    student_maps,
                    BLOCK_H,
                )
                teacher_high, teacher_inverse = row_total(
                    teacher_max,
                    teacher_sum,
                    teacher_place,
                    key_blocks,
                    used,
                    rival,
                    teacher_maps,
                    BLOCK_J,
                )
            low = segment * segment_keys
            for first in range(low, tl.minimum(low + segment_keys, counted), BLOCK_K):
                key = first + tl.arange(0, BLOCK_K)
                key_block = first // KEY_BLOCK
                a = load_maps(
                    teacher + local.to(tl.int64) * (teacher_row.to(tl.int64) * TEACHER_UNIT),
                    rival,
                    teacher_maps,
                    key,
                    seen,
                    teacher_head,
                    teacher_key,
                    teacher_max,
                    teacher_place,
                    key_block,
                    key_blocks,
                    teacher_high,
                    teacher_inverse,
                    TEACHER_UNIT,
                    CONTIGUOUS,
                )
                student_here = student + local.to(tl.int64) * (
                    student_row.to(tl.int64) * STUDENT_UNIT
                )
                if weight is None:
                    m = load_maps(
                        student_here,
                        rival,
                        student_maps,
                        key,
                        seen,
                        student_head,
                        student_key,
                        student_max,
                        teacher_place,
                        key_block,
                        key_blocks,
                        teacher_high,
                        teacher_inverse,
                        STUDENT_UNIT,
                        CONTIGUOUS,
                    )
                else:
                    tile = load_maps(
                        student_here,
                        head,
                        student_maps,
                        key,
                        seen,
                        student_head,
                        student_key,
                        student_max,
                        student_place,
                        key_block,
                        key_blocks,
                        student_high,
                        student_inverse,
                        STUDENT_UNIT,
                        CONTIGUOUS,
                    )
                    m = tl.dot(mixing.to(OPERAND), tile.to(OPERAND), input_precision=PRECISION)
                a = a * inverse_temperature
                m = m * inverse_temperature
                inside = (rival < teacher_maps)[:, None] & (key < counted)[None, :]
                if started == 0:
                    cells = tl.minimum(counted - first, BLOCK_K).to(tl.float32)
                    shift = tl.sum(tl.where(inside, m - a, 0.0), 1) / cells
                    started = 1
                (a_max_2, a_sum_2, d_sum_2, e_sum_2, m_max_2, m_sum_2, d_most_2) = gather(
                    a, m, inside, shift
                )
                a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most = merge(
                    a_max,
                    a_sum,
                    d_sum,
                    e_sum,
                    m_max,
                    m_sum,
                    d_most,
                    a_max_2,
                    a_sum_2,
                    d_sum_2,
                    e_sum_2,
                    m_max_2,
                    m_sum_2,
                    d_most_2,
                )
            if PER_ROW:
                if row < row_end:
                    if partials is None:
                        a_log, ratio, divergence = finish(
                            a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift
                        )
                        store_row(
                            statistics,
                            loss,
                            a_log,
                            ratio,
                            divergence,
                            slot,
                            sentence,
                            rival,
                            teacher_maps,
                            local,
                            rows,
                            row,
                            queries,
                        )
                    else:
                        store_partial(
                            partials
                            + ((slot.to(tl.int64) * rows + local) * parts + segment)
                            * FIELDS
                            * teacher_maps,
                            rival,
                            teacher_maps,
                            a_max,
                            a_sum,
                            d_sum,
                            e_sum,
                            m_max,
                            m_sum,
                            d_most,
                            shift,
                        )
        if not PER_ROW:
            store_partial(
                partials
                + (slot.to(tl.int64) * parts + part + row_group * segments + segment)
                * FIELDS
                * teacher_maps,
                rival,
                teacher_maps,
                a_max,
                a_sum,
                d_sum,
                e_sum,
                m_max,
                m_sum,
                d_most,
                shift,
            )


@triton.jit
def store_row(
    statistics,
    loss,
    a_log,
    ratio,
    divergence,
    slot,
    sentence,
    rival,
    teacher_maps,
    local,
    rows,
    row,
    queries,
):
    mask = rival < teacher_maps
    place = ((slot.to(tl.int64) * 2) * teacher_maps + rival) * rows + local
    tl.store(statistics + place, a_log, mask=mask)
    tl.store(statistics + place + teacher_maps.to(tl.int64) * rows, ratio, mask=mask)
    place = (sentence.to(tl.int64) * teacher_maps + rival) * queries + row
    tl.store(loss + place, divergence, mask=mask)


@triton.jit
def store_partial(
    partials, rival, teacher_maps, a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift
):
    mask = rival < teacher_maps
    place = partials + rival
    tl.store(place, a_max, mask=mask)
    tl.store(place + teacher_maps, a_sum, mask=mask)
    tl.store(place + 2 * teacher_maps, d_sum, mask=mask)
    tl.store(place + 3 * teacher_maps, e_sum, mask=mask)
    tl.store(place + 4 * teacher_maps, m_max, mask=mask)
    tl.store(place + 5 * teacher_maps, m_sum, mask=mask)
    tl.store(place + 6 * teacher_maps, d_most, mask=mask)
    tl.store(place + 7 * teacher_maps, shift, mask=mask)
