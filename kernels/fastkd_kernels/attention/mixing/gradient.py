"""The gradient of the mixed maps: to the student's scores or maps, and to the weight."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.read import load_maps, load_weight, mix_in_parts, row_extent
from fastkd_kernels.attention.numerics import (
    SMALLEST,
    STATISTICS,
    STEEP,
    add_exponentials,
    finish,
    gather,
    load_statistics,
    softmax_difference,
)

RUNTIME = (
    "student_sentence student_head student_row student_key teacher_sentence teacher_head "
    "teacher_row teacher_key out_sentence out_head out_row out_key student_width teacher_width "
    "student_maps teacher_maps queries keys first_sentence first_row rows key_blocks row_groups "
    "rows_each segments segment_units inverse_temperature sharp statistic_rows accumulate "
    "head_parts"
).split()


@triton.jit
def whole_row_statistics(a, m, counted, cells, sharp):
    """What `finish` finds in rows that are held whole, (J,) each."""
    shift = tl.sum(tl.where(counted, m - a, 0.0), 1) / cells
    base = tl.zeros_like(shift)
    if sharp != 0:
        base = tl.max(tl.where(counted, a, float("-inf")), 1)
        base = tl.where(base == float("-inf"), 0.0, base)
    a_sum, d_sum, e_sum, d_most = gather(a, m, counted, shift, base)
    highest, total = base, a_sum
    if tl.max(d_most, 0) > STEEP:
        highest, total = add_exponentials(
            tl.full(shift.shape, float("-inf"), tl.float32), tl.zeros_like(shift), m, counted
        )
    return finish(base, a_sum, d_sum, e_sum, highest, total, d_most, shift)


@triton.jit
def mixture_divergence(goal, mixed, present):
    """KL(goal ‖ mixed) of each row, (J,), and its gradient with respect to `mixed`, (J, K)."""
    floor = tl.maximum(mixed, SMALLEST)
    positive = present & (goal > 0)
    part = goal * (tl.log(tl.where(positive, goal, 1.0)) - tl.log(floor))
    divergence = tl.sum(tl.where(positive, part, 0.0), 1)
    return divergence, tl.where(positive & (mixed >= SMALLEST), -goal / floor, 0.0)


@triton.jit(do_not_specialize=RUNTIME)
def mix_gradient_bwd(
    student,  # (sentences, Ns, rows, keys), by strides
    teacher,  # (sentences, Nt, rows, keys), by strides
    weight,  # (Nt, Ns), or None: head n against head n
    student_factors,  # (sentences, Ns, rows, key blocks), or None: the maps are normalised
    teacher_factors,
    query_lengths,
    key_lengths,
    statistics,  # (sentences, STATISTICS, Nt, statistic rows), or None: nothing was gathered before
    upstream,  # (B, Nt), or None for ones
    loss,  # (B, Nt, Tq, segments), or None: it is known
    out,  # gradient of the maps or scores, like `student`; or None
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
    student_width,  # keys a row of `student` and `out` has, in their unit
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
    statistic_rows,
    accumulate,
    head_parts,  # programs that share the student maps of the same rows
    MIXTURE: tl.constexpr,
    TO_MAPS: tl.constexpr,  # else to scores
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
    ONE_J: tl.constexpr,  # one block of teacher maps holds them all, the weight and its gradient
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0) // head_parts
    part = tl.program_id(0) % head_parts
    segment = program % segments
    row_group = (program // segments) % row_groups
    slot = program // (segments * row_groups)
    sentence = first_sentence + slot
    row_end = tl.minimum(first_row + rows, queries)
    student += slot.to(tl.int64) * student_sentence * STUDENT_UNIT
    teacher += slot.to(tl.int64) * teacher_sentence * TEACHER_UNIT
    if out is not None:
        out += slot.to(tl.int64) * out_sentence * STUDENT_UNIT
    if upstream is not None:
        upstream += sentence.to(tl.int64) * teacher_maps
    if statistics is not None:
        statistics += slot.to(tl.int64) * STATISTICS * teacher_maps * statistic_rows
    student_layout = student_width, student_head, student_key
    teacher_layout = teacher_width, teacher_head, teacher_key
    head = part * BLOCK_H + tl.arange(0, BLOCK_H)
    every = tl.arange(0, BLOCK_J)
    told = tl.where(part == 0, teacher_maps, 0)  # teacher maps whose loss this program writes
    if weight_slots is not None:
        weight_slots += program.to(tl.int64) * teacher_maps * student_maps
        if not ONE_J and accumulate == 0:
            for start in range(0, teacher_maps, BLOCK_J):
                place, mask = weight_places(start + every, head, teacher_maps, student_maps)
                zero = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)
                add_to_memory(weight_slots + place, zero, mask, False)
    if ONE_J and weight is not None:
        mixing = load_weight(weight, every, head, teacher_maps, student_maps).to(OPERAND)
        weight_sum = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)

    for index in range(rows_each):
        local = row_group * rows_each + index
        row = first_row + local
        seen, counted = row_extent(
            query_lengths, key_lengths, sentence, row, row_end, queries, keys, CAUSAL, INCLUDE
        )
        student_here = student + local.to(tl.int64) * student_row * STUDENT_UNIT
        teacher_here = teacher + local.to(tl.int64) * teacher_row * TEACHER_UNIT
        own = student_factors
        other = teacher_factors
        if student_factors is not None:
            own += (slot * student_maps * rows + local).to(tl.int64) * key_blocks
            other += (slot * teacher_maps * rows + local).to(tl.int64) * key_blocks
        if out is not None:
            out_here = out + local.to(tl.int64) * out_row * STUDENT_UNIT
        if loss is not None:
            loss_here = (
                loss + (sentence.to(tl.int64) * teacher_maps * queries + row) * segments + segment
            )
        loss_sum = tl.zeros((BLOCK_J,), tl.float32)
        delta_sum = tl.zeros((BLOCK_H,), tl.float32)
        low = segment * segment_units * 16
        high = tl.minimum(low + segment_units * 16, seen)
        if statistics is None and not MIXTURE:
            # The program holds whole rows, and what counts in them has to be gathered first.
            high = counted
        if not ONE_J and loss is not None:
            if low >= high:
                held = tl.where(row < row_end, told, 0)
                for start in range(0, held, BLOCK_J):
                    rival = start + every
                    tl.store(loss_here + rival * queries * segments, loss_sum, mask=rival < held)
        for first in range(low, high, BLOCK_K):
            key = first + tl.arange(0, BLOCK_K)
            block = key, seen, first // KEY_BLOCK, key_blocks, rows
            if weight is not None:
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
                operand = tile.to(OPERAND)
                map_gradient = tl.zeros((BLOCK_H, BLOCK_K), tl.float32)
            for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
                rival = start + every
                goal = load_maps(
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
                    mixed = load_maps(
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
                else:
                    if not ONE_J:
                        mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
                        mixing = mixing.to(OPERAND)
                    if ONE_H:
                        mixed = tl.dot(mixing, operand, input_precision=PRECISION)
                    else:
                        mixed = mix_in_parts(
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
                present = (rival < teacher_maps)[:, None] & (key < seen)[None, :]
                divergence = loss_sum
                if MIXTURE:
                    divergence, difference = mixture_divergence(goal, mixed, present)
                else:
                    a = goal * inverse_temperature
                    m = mixed * inverse_temperature
                    if statistics is None:
                        inside = (rival < teacher_maps)[:, None] & (key < counted)[None, :]
                        a_base, a_scale, m_base, m_scale, ratio, divergence = whole_row_statistics(
                            a, m, inside, counted.to(tl.float32), sharp
                        )
                    else:
                        here = statistics + tl.where(statistic_rows > 1, local, 0)
                        a_base, a_scale, m_base, m_scale, ratio = load_statistics(
                            here + rival * statistic_rows,
                            teacher_maps * statistic_rows,
                            rival < teacher_maps,
                        )
                    difference = softmax_difference(a, m, a_base, a_scale, m_base, m_scale, ratio)
                    difference *= inverse_temperature
                if upstream is not None:
                    factor = tl.load(upstream + rival, mask=rival < teacher_maps, other=0.0)
                    difference *= factor[:, None]
                difference = tl.where(present, difference, 0.0)
                if loss is not None:
                    if ONE_J:
                        loss_sum += divergence
                    else:
                        add_to_memory(
                            loss_here + rival * queries * segments,
                            divergence,
                            rival < told,
                            first > low,
                        )
                if weight is None:
                    if out is not None:
                        store_map_gradient(
                            out_here,
                            difference,
                            rival,
                            student_maps,
                            key,
                            student_width,
                            out_head,
                            out_key,
                            STUDENT_UNIT,
                            CONTIGUOUS,
                            WIDE,
                        )
                else:
                    rounded = difference.to(OPERAND)
                    if weight_slots is not None:
                        change = tl.dot(rounded, tl.trans(operand), input_precision=PRECISION)
                        if ONE_J:
                            weight_sum += change
                        else:
                            place, mask = weight_places(rival, head, teacher_maps, student_maps)
                            add_to_memory(weight_slots + place, change, mask, True)
                    if out is not None:
                        map_gradient = tl.dot(
                            tl.trans(mixing), rounded, map_gradient, input_precision=PRECISION
                        )
            if weight is not None and out is not None:
                if not TO_MAPS:
                    # Read again: the maps in float32 would not fit the registers beside the loop.
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
                    # 0 · inf where a probability underflowed is 0: no score moves it.
                    map_gradient = tl.where(tile == 0, 0.0, tile * map_gradient)
                    summed = tl.sum(map_gradient, 1)
                    if delta is None:
                        map_gradient -= summed[:, None] * tile
                    else:
                        delta_sum += summed
                store_map_gradient(
                    out_here,
                    map_gradient,
                    head,
                    student_maps,
                    key,
                    student_width,
                    out_head,
                    out_key,
                    STUDENT_UNIT,
                    CONTIGUOUS,
                    WIDE,
                )
        if loss is not None and ONE_J:
            held = tl.where(row < row_end, told, 0)
            tl.store(loss_here + every * queries * segments, loss_sum, mask=every < held)
        if delta is not None:
            held = tl.where(row < row_end, student_maps, 0)
            place = (slot * student_maps * rows + local).to(tl.int64) * segments + segment
            tl.store(delta + place + head * rows * segments, delta_sum, mask=head < held)
    if ONE_J and weight_slots is not None:
        place, mask = weight_places(every, head, teacher_maps, student_maps)
        if accumulate != 0:
            weight_sum += tl.load(weight_slots + place, mask=mask, other=0.0)
        tl.store(weight_slots + place, weight_sum, mask=mask)


@triton.jit
def add_to_memory(place, value, mask, written):
    """Adds to what this program wrote before, or writes for the first time."""
    if written:
        value += tl.load(place, mask=mask, other=0.0)
        tl.debug_barrier()
    tl.store(place, value, mask=mask)
    tl.debug_barrier()


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
    width,
    head_stride,
    key_stride,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
):
    if WIDE:
        along = head.to(tl.int64) * (head_stride.to(tl.int64) * UNIT)
    else:
        along = head * (head_stride * UNIT)
    across = key if CONTIGUOUS else key.to(tl.int64) * key_stride
    tl.store(
        out + along[:, None] + across[None, :],
        gradient.to(out.dtype.element_ty),
        mask=(head < heads)[:, None] & (key < width * UNIT)[None, :],
    )
