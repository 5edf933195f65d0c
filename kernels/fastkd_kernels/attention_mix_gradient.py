"""The gradient of the mixed maps: to the student's scores or maps, and to the weight."""

import triton
import triton.language as tl

from fastkd_kernels.attention_mix import load_maps, load_weight, row_extent, row_total
from fastkd_kernels.attention_numerics import SMALLEST, finish, gather, softmax_difference

RUNTIME = (
    "student_sentence student_head student_row student_key teacher_sentence teacher_head "
    "teacher_row teacher_key out_sentence out_head out_row out_key student_maps teacher_maps "
    "queries keys first_sentence first_row rows key_blocks row_groups rows_each segments "
    "segment_keys inverse_temperature statistic_rows accumulate"
).split()


@triton.jit(do_not_specialize=RUNTIME)
def mix_gradient_bwd(
    student,  # (sentences, Ns, rows, keys), by strides
    teacher,  # (sentences, Nt, rows, keys), by strides
    weight,  # (Nt, Ns), or None: head n against head n
    student_max,  # (sentences, Ns, rows, key blocks), or None: the maps are normalised
    student_sum,
    teacher_max,
    teacher_sum,
    query_lengths,
    key_lengths,
    statistics,  # (sentences, 2, Nt, statistic rows), or None: nothing was gathered before
    upstream,  # (B, Nt), or None for ones
    loss,  # (B, Nt, Tq, segments), or None: it is known
    out,  # gradient of the maps or scores, like `student`; or None
    student_totals,  # (sentences, Ns, rows, 2): maximum and 1 / sum, or None
    delta,  # (sentences, Ns, rows, segments), or None: `out` is complete
    weight_slots,  # (programs, Nt, Ns), or None
    student_sentence,
    student_head,
    student_row,
    student_key,
    teacher_sentence,
    teacher_head,
    teacher_row,
    teacher_key,
    out_sentence,
    out_head,
    out_row,
    out_key,
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
    statistic_rows,
    accumulate,
    MIXTURE: tl.constexpr,
    TO_MAPS: tl.constexpr,  # else to scores
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    ONE_J: tl.constexpr,  # one block of teacher maps holds them all
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
    if out is not None:
        out += slot.to(tl.int64) * out_sentence * STUDENT_UNIT
    if weight_slots is not None:
        weight_slots += program.to(tl.int64) * teacher_maps * student_maps
        if not ONE_J:
            if accumulate == 0:
                for start in range(0, teacher_maps, BLOCK_J):
                    place, mask = weight_places(
                        start + block_head, head, teacher_maps, student_maps
                    )
                    tl.store(weight_slots + place, tl.zeros_like(mask).to(tl.float32), mask=mask)
                tl.debug_barrier()
    if ONE_J and weight is not None:
        mixing = load_weight(weight, block_head, head, teacher_maps, student_maps).to(OPERAND)
        weight_sum = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)

    for index in range(rows_each):
        local = row_group * rows_each + index
        row = first_row + local
        seen, counted = row_extent(
            query_lengths, key_lengths, sentence, row, row_end, queries, keys, CAUSAL, INCLUDE
        )
        student_place = (slot.to(tl.int64) * student_maps + head) * rows + local
        students_here = tl.where(row < row_end, student_maps, 0)
        teachers_here = tl.where(row < row_end, teacher_maps, 0)
        high_total = tl.zeros((BLOCK_H,), tl.float32)
        inverse = high_total
        used = tl.cdiv(seen, KEY_BLOCK)
        if student_max is not None:
            high_total, inverse = row_total(
                student_max,
                student_sum,
                student_place,
                key_blocks,
                used,
                head,
                student_maps,
                BLOCK_H,
            )
            if segment == 0:
                place = student_totals + student_place * 2
                tl.store(place, high_total, mask=head < students_here)
                tl.store(place + 1, inverse, mask=head < students_here)
        if loss is not None:
            if not ONE_J:
                for start in range(0, teacher_maps, BLOCK_J):
                    rival = start + block_head
                    tl.store(
                        loss
                        + loss_places(
                            sentence, rival, row, segment, teacher_maps, queries, segments
                        ),
                        tl.zeros((BLOCK_J,), tl.float32),
                        mask=rival < teachers_here,
                    )
                tl.debug_barrier()
        loss_sum = tl.zeros((BLOCK_J,), tl.float32)
        delta_sum = tl.zeros((BLOCK_H,), tl.float32)
        low = segment * segment_keys
        high = tl.minimum(low + segment_keys, seen)
        if statistics is None and not MIXTURE:
            # The program sees whole rows, and those that count have to be gathered first.
            high = counted
        for first in range(low, high, BLOCK_K):
            key = first + tl.arange(0, BLOCK_K)
            key_block = first // KEY_BLOCK
            if weight is not None:
                tile = load_maps(
                    student + local.to(tl.int64) * (student_row.to(tl.int64) * STUDENT_UNIT),
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
                    high_total,
                    inverse,
                    STUDENT_UNIT,
                    CONTIGUOUS,
                )
                operand = tile.to(OPERAND)
                map_gradient = tl.zeros((BLOCK_H, BLOCK_K), tl.float32)
            for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
                rival = start + block_head
                teacher_place = (slot.to(tl.int64) * teacher_maps + rival) * rows + local
                teacher_high = tl.zeros((BLOCK_J,), tl.float32)
                teacher_inverse = teacher_high
                if teacher_max is not None:
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
                goal = load_maps(
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
                if weight is None:
                    mixed = load_maps(
                        student + local.to(tl.int64) * (student_row.to(tl.int64) * STUDENT_UNIT),
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
                    if not ONE_J:
                        mixing = load_weight(weight, rival, head, teacher_maps, student_maps).to(
                            OPERAND
                        )
                    mixed = tl.dot(mixing, operand, input_precision=PRECISION)
                factor = tl.full((BLOCK_J,), 1.0, tl.float32)
                if upstream is not None:
                    factor *= tl.load(
                        upstream + sentence.to(tl.int64) * teacher_maps + rival,
                        mask=rival < teacher_maps,
                        other=0.0,
                    )
                present = (rival < teacher_maps)[:, None] & (key < seen)[None, :]
                if MIXTURE:
                    floor = tl.maximum(mixed, SMALLEST)
                    positive = present & (goal > 0)
                    part = goal * (tl.log(tl.where(positive, goal, 1.0)) - tl.log(floor))
                    divergence = tl.sum(tl.where(positive, part, 0.0), 1)
                    difference = tl.where(positive & (mixed >= SMALLEST), -goal / floor, 0.0)
                else:
                    a = goal * inverse_temperature
                    m = mixed * inverse_temperature
                    if statistics is None:
                        inside = (rival < teacher_maps)[:, None] & (key < counted)[None, :]
                        cells = tl.maximum(counted, 1).to(tl.float32)
                        shift = tl.sum(tl.where(inside, m - a, 0.0), 1) / cells
                        a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most = gather(
                            a, m, inside, shift
                        )
                        a_log, ratio, divergence = finish(
                            a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift
                        )
                    else:
                        place = (slot.to(tl.int64) * 2 * teacher_maps + rival) * statistic_rows
                        place += tl.where(statistic_rows > 1, local, 0)
                        a_log = tl.load(statistics + place, mask=rival < teacher_maps, other=0.0)
                        ratio = tl.load(
                            statistics + place + teacher_maps.to(tl.int64) * statistic_rows,
                            mask=rival < teacher_maps,
                            other=0.0,
                        )
                        divergence = tl.zeros((BLOCK_J,), tl.float32)
                    difference = softmax_difference(a, m, a_log[:, None], ratio[:, None])
                    difference = difference * inverse_temperature
                difference = tl.where(present, difference * factor[:, None], 0.0)
                if loss is not None:
                    if ONE_J:
                        loss_sum += divergence
                    else:
                        here = loss + loss_places(
                            sentence, rival, row, segment, teacher_maps, queries, segments
                        )
                        mask = rival < teachers_here
                        known = tl.load(here, mask=mask, other=0.0)
                        tl.debug_barrier()
                        tl.store(here, known + divergence, mask=mask)
                        tl.debug_barrier()
                if weight is None:
                    if out is not None:
                        store_map_gradient(
                            out + local.to(tl.int64) * (out_row.to(tl.int64) * STUDENT_UNIT),
                            difference,
                            rival,
                            student_maps,
                            key,
                            seen,
                            out_head,
                            out_key,
                            STUDENT_UNIT,
                            CONTIGUOUS,
                        )
                else:
                    rounded = difference.to(OPERAND)
                    if weight_slots is not None:
                        change = tl.dot(rounded, tl.trans(operand), input_precision=PRECISION)
                        if ONE_J:
                            weight_sum += change
                        else:
                            place, mask = weight_places(rival, head, teacher_maps, student_maps)
                            known = tl.load(weight_slots + place, mask=mask, other=0.0)
                            tl.debug_barrier()
                            tl.store(weight_slots + place, known + change, mask=mask)
                            tl.debug_barrier()
                    if out is not None:
                        map_gradient = tl.dot(
                            tl.trans(mixing), rounded, map_gradient, input_precision=PRECISION
                        )
            if weight is not None:
                if out is not None:
                    if not TO_MAPS:
                        # 0 · inf where a probability underflowed is 0: no score moves it.
                        map_gradient = tl.where(tile == 0, 0.0, tile * map_gradient)
                        summed = tl.sum(map_gradient, 1)
                        if delta is None:
                            map_gradient -= summed[:, None] * tile
                        else:
                            delta_sum += summed
                    store_map_gradient(
                        out + local.to(tl.int64) * (out_row.to(tl.int64) * STUDENT_UNIT),
                        map_gradient,
                        head,
                        student_maps,
                        key,
                        seen,
                        out_head,
                        out_key,
                        STUDENT_UNIT,
                        CONTIGUOUS,
                    )
        if loss is not None:
            if ONE_J:
                tl.store(
                    loss
                    + loss_places(
                        sentence, block_head, row, segment, teacher_maps, queries, segments
                    ),
                    loss_sum,
                    mask=block_head < teachers_here,
                )
        if delta is not None:
            tl.store(
                delta + student_place * segments + segment,
                delta_sum,
                mask=head < students_here,
            )
    if ONE_J and weight_slots is not None:
        place, mask = weight_places(block_head, head, teacher_maps, student_maps)
        if accumulate != 0:
            weight_sum += tl.load(weight_slots + place, mask=mask, other=0.0)
        tl.store(weight_slots + place, weight_sum, mask=mask)


@triton.jit
def loss_places(sentence, rival, row, segment, teacher_maps, queries, segments):
    return ((sentence.to(tl.int64) * teacher_maps + rival) * queries + row) * segments + segment


@triton.jit
def weight_places(rival, head, teacher_maps, student_maps):
    place = rival[:, None] * student_maps + head[None, :]
    return place, (rival < teacher_maps)[:, None] & (head < student_maps)[None, :]


@triton.jit
def store_map_gradient(
    out,
    gradient,
    head,
    heads,
    key,
    seen,
    head_stride,
    key_stride,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
):
    across = key if CONTIGUOUS else key.to(tl.int64) * key_stride
    tl.store(
        out + head.to(tl.int64)[:, None] * (head_stride.to(tl.int64) * UNIT) + across[None, :],
        gradient.to(out.dtype.element_ty),
        mask=(head < heads)[:, None] & (key < seen)[None, :],
    )
