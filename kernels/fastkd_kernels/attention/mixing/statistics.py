"""Mixing of all student maps into each teacher map: what their divergence needs."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.read import load_maps, load_weight, mix_in_parts, row_extent
from fastkd_kernels.attention.numerics import (
    FIELDS,
    STATISTICS,
    STEEP,
    add_exponentials,
    finish,
    gather,
    moved_sum,
    store_statistics,
)

RUNTIME = (
    "student_sentence student_head student_row student_key teacher_sentence teacher_head "
    "teacher_row teacher_key student_width teacher_width student_maps teacher_maps queries keys "
    "first_sentence first_row rows key_blocks row_groups rows_each segments segment_units "
    "inverse_temperature sharp parts part"
).split()


@triton.jit(do_not_specialize=RUNTIME)
def mix_statistics_fwd(
    student,  # (sentences, Ns, rows, keys), by strides
    teacher,  # (sentences, Nt, rows, keys), by strides
    weight,  # (Nt, Ns), or None: head n against head n
    student_factors,  # (sentences, Ns, rows, key blocks), or None: the maps are normalised
    teacher_factors,
    query_lengths,
    key_lengths,
    partials,  # (groups, parts, FIELDS, Nt), or None: a program sees its rows whole
    statistics,  # (sentences, STATISTICS, Nt, rows), or None with `partials`
    loss,  # (B, Nt, Tq), or None with `partials`
    student_sentence,
    student_head,
    student_row,
    student_key,
    teacher_sentence,
    teacher_head,
    teacher_row,
    teacher_key,
    student_width,  # keys that a row of `student` has in memory, in its unit
    teacher_width,
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
    segment_units,
    inverse_temperature,
    sharp,  # whether exp(a) may overflow
    parts,
    part,  # of the chunk's first program, where a whole map is one group
    PER_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    ONE_H: tl.constexpr,  # one block of student maps holds them all
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
    student_layout = student_width, student_head, student_key
    teacher_layout = teacher_width, teacher_head, teacher_key
    head = tl.arange(0, BLOCK_H)
    low = segment * segment_units * 16

    for start in range(0, teacher_maps, BLOCK_J):
        rival = start + tl.arange(0, BLOCK_J)  # teacher's heads
        if ONE_H and weight is not None:
            mixing = load_weight(weight, rival, head, teacher_maps, student_maps).to(OPERAND)
        for outer in range(rows_each if PER_ROW else 1):
            a_sum = tl.zeros((BLOCK_J,), tl.float32)
            d_sum = tl.zeros((BLOCK_J,), tl.float32)
            e_sum = tl.zeros((BLOCK_J,), tl.float32)
            d_most = tl.zeros((BLOCK_J,), tl.float32)
            shift = tl.zeros((BLOCK_J,), tl.float32)
            base = tl.zeros((BLOCK_J,), tl.float32)
            highest = tl.full((BLOCK_J,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_J,), tl.float32)
            started = 0
            # Walk 1 takes the sums. What is rare has walks of its own: 0 finds the maximum of a
            # where exp(a) may overflow, 2 sums exp(m) where max |d| is large.
            for walk in range(tl.where(sharp != 0, 0, 1), 3):
                inner_rows = 1 if PER_ROW else rows_each
                if walk == 2:
                    highest = tl.full((BLOCK_J,), float("-inf"), tl.float32)
                    total = tl.zeros((BLOCK_J,), tl.float32)
                    inner_rows = tl.where(tl.max(d_most, 0) > STEEP, inner_rows, 0)
                for inner in range(inner_rows):
                    local = row_group * rows_each + outer + inner
                    seen, counted = row_extent(
                        query_lengths,
                        key_lengths,
                        sentence,
                        first_row + local,
                        row_end,
                        queries,
                        keys,
                        CAUSAL,
                        INCLUDE,
                    )
                    student_here = student + local.to(tl.int64) * student_row * STUDENT_UNIT
                    teacher_here = teacher + local.to(tl.int64) * teacher_row * TEACHER_UNIT
                    own = student_factors
                    other = teacher_factors
                    if student_factors is not None:
                        own += (slot * student_maps * rows + local).to(tl.int64) * key_blocks
                        other += (slot * teacher_maps * rows + local).to(tl.int64) * key_blocks
                    for first in range(low, tl.minimum(low + segment_units * 16, counted), BLOCK_K):
                        key = first + tl.arange(0, BLOCK_K)
                        block = key, seen, first // KEY_BLOCK, key_blocks, rows
                        a = load_maps(
                            teacher_here,
                            other,
                            rival,
                            teacher_maps,
                            block,
                            teacher_layout,
                            TEACHER_UNIT,
                            CONTIGUOUS,
                            WIDE,
                        )
                        if weight is None:
                            m = load_maps(
                                student_here,
                                own,
                                rival,
                                student_maps,
                                block,
                                student_layout,
                                STUDENT_UNIT,
                                CONTIGUOUS,
                                WIDE,
                            )
                        elif not ONE_H:
                            m = mix_in_parts(
                                student_here,
                                own,
                                weight,
                                rival,
                                teacher_maps,
                                student_maps,
                                block,
                                student_layout,
                                STUDENT_UNIT,
                                CONTIGUOUS,
                                WIDE,
                                OPERAND,
                                PRECISION,
                                BLOCK_H,
                                BLOCK_J,
                                BLOCK_K,
                            )
                        else:
                            tile = load_maps(
                                student_here,
                                own,
                                head,
                                student_maps,
                                block,
                                student_layout,
                                STUDENT_UNIT,
                                CONTIGUOUS,
                                WIDE,
                            )
                            m = tl.dot(mixing, tile.to(OPERAND), input_precision=PRECISION)
                        a *= inverse_temperature
                        m *= inverse_temperature
                        inside = (rival < teacher_maps)[:, None] & (key < counted)[None, :]
                        if walk == 0:
                            here = tl.where(inside, a, float("-inf"))
                            highest = tl.maximum(highest, tl.max(here, 1))
                            base = tl.where(highest == float("-inf"), 0.0, highest)
                        elif walk == 1:
                            if started == 0:
                                cells = tl.minimum(counted - first, BLOCK_K).to(tl.float32)
                                shift = tl.sum(tl.where(inside, m - a, 0.0), 1) / cells
                                started = 1
                            more, more_d, more_e, most = gather(a, m, inside, shift, base)
                            a_sum += more
                            d_sum += more_d
                            e_sum += more_e
                            d_most = tl.maximum(d_most, most)
                        else:
                            highest, total = add_exponentials(highest, total, m, inside)
            if tl.max(d_most, 0) <= STEEP:
                highest, total, _ = moved_sum(base, shift, a_sum, d_sum, e_sum)
            local = row_group * rows_each + outer
            if PER_ROW and partials is None:
                if first_row + local < row_end:
                    a_base, a_scale, m_base, m_scale, ratio, divergence = finish(
                        base, a_sum, d_sum, e_sum, highest, total, d_most, shift
                    )
                    store_row(
                        statistics,
                        loss,
                        a_base,
                        a_scale,
                        m_base,
                        m_scale,
                        ratio,
                        divergence,
                        slot,
                        sentence,
                        rival,
                        teacher_maps,
                        local,
                        rows,
                        first_row + local,
                        queries,
                    )
            else:
                group = slot.to(tl.int64)
                place = part + row_group * segments + segment
                held = teacher_maps
                if PER_ROW:
                    group = group * rows + local
                    place = segment
                    held = tl.where(first_row + local < row_end, teacher_maps, 0)
                store_partial(
                    partials + (group * parts + place) * FIELDS * teacher_maps,
                    rival,
                    teacher_maps,
                    held,
                    base,
                    a_sum,
                    d_sum,
                    e_sum,
                    highest,
                    total,
                    d_most,
                    shift,
                )


@triton.jit
def store_row(
    statistics,
    loss,
    a_base,
    a_scale,
    m_base,
    m_scale,
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
    statistics += (slot.to(tl.int64) * STATISTICS * teacher_maps + rival) * rows + local
    step = teacher_maps * rows
    store_statistics(statistics, step, a_base, a_scale, m_base, m_scale, ratio, mask)
    loss += sentence.to(tl.int64) * teacher_maps * queries + row
    tl.store(loss + rival * queries, divergence, mask=mask)


@triton.jit
def store_partial(
    partials,
    rival,
    teacher_maps,
    held,
    base,
    a_sum,
    d_sum,
    e_sum,
    highest,
    total,
    d_most,
    shift,
):
    mask = rival < held
    place = partials + rival
    tl.store(place, base, mask=mask)
    tl.store(place + teacher_maps, a_sum, mask=mask)
    tl.store(place + 2 * teacher_maps, d_sum, mask=mask)
    tl.store(place + 3 * teacher_maps, e_sum, mask=mask)
    tl.store(place + 4 * teacher_maps, highest, mask=mask)
    tl.store(place + 5 * teacher_maps, total, mask=mask)
    tl.store(place + 6 * teacher_maps, d_most, mask=mask)
    tl.store(place + 7 * teacher_maps, shift, mask=mask)
