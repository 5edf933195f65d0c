"""The gradient of the mixed maps: to the student's scores or maps, and to the weight."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.divergence import (
    known_difference,
    mixture_divergence,
    whole_row,
)
from fastkd_kernels.attention.mixing.read import (
    as_operand,
    as_sums,
    load_maps,
    load_weight,
    mixed_maps,
    row_extent,
)
from fastkd_kernels.attention.mixing.rounded import (
    rounded_difference,
    rounded_mixture,
    rounded_row,
)
from fastkd_kernels.attention.mixing.statistics import gather_rows
from fastkd_kernels.attention.mixing.store import (
    add_to_memory,
    store_map_gradient,
    weight_places,
)
from fastkd_kernels.attention.numerics import (
    STATISTICS,
    finish,
    load_statistics,
    store_statistics,
)

RUNTIME = (
    "student_sentence student_head student_row student_key teacher_sentence teacher_head "
    "teacher_row teacher_key out_sentence out_head out_row out_key student_width teacher_width "
    "student_maps teacher_maps queries keys first_sentence first_row rows row_groups rows_each "
    "inverse_temperature sharp statistic_rows upstream_step upstream_factor accumulate head_parts "
    "parts part"
).split()


@triton.jit(do_not_specialize=RUNTIME)
def mix_gradient_bwd(
    student,  # (sentences, Ns, rows, keys), by strides
    teacher,  # (sentences, Nt, rows, keys), by strides
    weight,  # (Nt, Ns), or None: head n against head n
    query_lengths,
    key_lengths,
    statistics,  # (sentences, STATISTICS, Nt, statistic rows), or None: rows are held whole;
    # with `loss`: (sentences, head parts, STATISTICS, Nt, rows), for this program to fill
    upstream,  # (B, Nt) or, with a step of 0, one number; None for ones
    loss,  # (B, parts, Nt), a part a program; or None: it is known, as are the statistics
    out,  # gradient of the maps or scores, like `student`; or None
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
    row_groups,
    rows_each,
    inverse_temperature,
    sharp,  # whether exp(a) may overflow
    statistic_rows,
    upstream_step,
    upstream_factor,
    accumulate,
    head_parts,  # programs that share the student maps of the same rows
    parts,  # of a sentence
    part,  # of the chunk's first program
    MIXTURE: tl.constexpr,
    TO_MAPS: tl.constexpr,  # else to scores
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    HEAD_UNIT: tl.constexpr,  # divides the student's maps
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,  # whether its own logarithm may be used
    LONG: tl.constexpr,  # rows of more than a block: their δ is known after a walk of its own
    ONE_H: tl.constexpr,  # one block of student maps holds them all
    ONE_J: tl.constexpr,  # one block of teacher maps holds them all, the weight and its gradient
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    EXACT: tl.constexpr = OPERAND == tl.float32
    student_maps = student_maps // HEAD_UNIT * HEAD_UNIT
    if SCRATCH:  # all maps lie there alike
        tl.static_assert(STUDENT_UNIT == TEACHER_UNIT)
        out_sentence, out_row, out_head, out_key = (
            student_sentence, student_row, student_head, student_key,
        )  # fmt: skip
        teacher_row, teacher_head, teacher_key, teacher_width = (
            student_row, student_head, student_key, student_width,
        )  # fmt: skip
    program = tl.program_id(0) // head_parts
    head_part = tl.program_id(0) % head_parts
    row_group = program % row_groups
    slot = program // row_groups
    sentence = first_sentence + slot
    row_end = tl.minimum(first_row + rows, queries)
    student += slot.to(tl.int64) * student_sentence * STUDENT_UNIT
    teacher += slot.to(tl.int64) * teacher_sentence * TEACHER_UNIT
    if out is not None:
        out += slot.to(tl.int64) * out_sentence * STUDENT_UNIT
    if upstream is not None:
        if TO_MAPS:
            upstream += sentence.to(tl.int64) * teacher_maps * upstream_step
        else:
            upstream += sentence.to(tl.int64) * teacher_maps
    if statistics is not None:
        own_place = slot.to(tl.int64)
        if loss is not None:
            # Programs that share a row measure it each for itself.
            own_place = own_place * head_parts + head_part
        statistics += own_place * STATISTICS * teacher_maps * statistic_rows
    head = head_part * BLOCK_H + tl.arange(0, BLOCK_H)
    every = tl.arange(0, BLOCK_J)
    told = tl.where(head_part == 0, teacher_maps, 0)  # teacher maps whose loss this program writes
    loss_sum = tl.zeros((BLOCK_J,), tl.float32)
    if loss is not None:
        loss += (sentence.to(tl.int64) * parts + part + row_group) * teacher_maps
        if statistics is not None:
            for start in range(0, told, BLOCK_J):
                add_to_memory(loss + start + every, loss_sum, start + every < told, False)
    mixing = tl.zeros((BLOCK_J, BLOCK_H), tl.float32).to(OPERAND)
    weight_sum = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)
    if weight_slots is not None:
        weight_slots += program.to(tl.int64) * teacher_maps * student_maps
    if ONE_J and weight is not None:
        mixing = load_weight(weight, every, head, teacher_maps, student_maps)
        mixing = as_operand(mixing, OPERAND, PRECISION)

    for index in range(rows_each):
        local = row_group * rows_each + index
        seen, counted = row_extent(
            query_lengths, key_lengths, sentence, first_row + local, row_end, queries, keys,
            CAUSAL, INCLUDE,
        )  # fmt: skip
        if loss is not None and statistics is not None:
            row_statistics(
                (student, student_row, student_head, student_key, student_width, student_maps),
                (teacher, teacher_row, teacher_head, teacher_key, teacher_width, teacher_maps),
                weight, mixing, query_lengths, key_lengths, statistics, loss,
                (sentence, first_row, row_end, local, 1), (queries, keys), told,
                inverse_temperature, sharp, statistic_rows, CAUSAL, INCLUDE, STUDENT_UNIT,
                TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, ONE_J,
                BLOCK_H, BLOCK_J, BLOCK_K,
            )  # fmt: skip
            tl.debug_barrier()
        own = (
            student + local.to(tl.int64) * student_row * STUDENT_UNIT,
            student_head, student_key, student_width, student_maps,
        )  # fmt: skip
        other = (
            teacher + local.to(tl.int64) * teacher_row * TEACHER_UNIT,
            teacher_head, teacher_key, teacher_width, teacher_maps,
        )  # fmt: skip
        delta = tl.zeros((BLOCK_H,), tl.float32)  # row sum of P ∘ dP
        # A program that holds whole rows measures them first, padded keys that count as well.
        high = counted if statistics is None and not MIXTURE else seen
        if loss is not None and statistics is not None and out is None and weight_slots is None:
            high = 0
        if not ONE_J and (index == 0) & (high == 0):
            # No block of this row writes what those of the next ones add to.
            for start in range(0, teacher_maps, BLOCK_J):
                if loss is not None and statistics is None:
                    add_to_memory(loss + start + every, loss_sum, start + every < told, False)
                if weight_slots is not None and accumulate == 0:
                    place, mask = weight_places(start + every, head, teacher_maps, student_maps)
                    add_to_memory(weight_slots + place, weight_sum, mask, False)
        for phase in tl.static_range(2 if LONG else 1):
            for first in range(0, high, BLOCK_K):
                key = first + tl.arange(0, BLOCK_K)
                operand = mixing
                map_gradient = tl.zeros((BLOCK_K, BLOCK_H), tl.float32)
                if weight is not None:
                    tile = load_maps(own, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, SCRATCH)
                    operand = as_operand(tile, OPERAND, PRECISION)
                for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
                    rival = start + every
                    if not ONE_J and weight is not None:
                        mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
                        mixing = as_operand(mixing, OPERAND, PRECISION)
                    goal = load_maps(
                        other, rival, key, seen, TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH
                    )
                    goal = as_sums(goal, OPERAND, BLOCK_J)
                    mixed = mixed_maps(
                        operand, mixing, weight, own, rival, teacher_maps, key, seen, STUDENT_UNIT,
                        CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J,
                        BLOCK_K,
                    )  # fmt: skip
                    factor = tl.full((BLOCK_J,), 1.0, tl.float32)
                    if upstream is not None:
                        step = upstream_step if TO_MAPS else 1
                        factor = tl.load(
                            upstream + rival * step, mask=rival < teacher_maps, other=0.0
                        )
                        if TO_MAPS:
                            factor *= upstream_factor
                    divergence = tl.zeros((BLOCK_J,), tl.float32)
                    if MIXTURE and EXACT:
                        difference, divergence = mixture_divergence(goal, mixed, factor)
                    elif MIXTURE:
                        difference, divergence = rounded_mixture(goal, mixed, factor, NVIDIA)
                    elif statistics is not None:
                        known = load_statistics(
                            statistics + rival * statistic_rows
                            + tl.where(statistic_rows > 1, local, 0),
                            teacher_maps * statistic_rows,
                            rival < teacher_maps,
                        )  # fmt: skip
                        present = (key < seen)[:, None]
                        if EXACT:
                            difference = known_difference(
                                goal, mixed, present, known, factor, inverse_temperature
                            )
                        else:
                            difference = rounded_difference(
                                goal, mixed, present, known, factor, inverse_temperature
                            )
                    else:
                        inside = (key < counted)[:, None]
                        cells = counted.to(tl.float32)
                        if EXACT:
                            difference, divergence = whole_row(
                                goal, mixed, inside, cells, factor, inverse_temperature, sharp
                            )
                        else:
                            difference, divergence = rounded_row(
                                goal, mixed, inside, cells, factor, inverse_temperature, sharp,
                                NVIDIA,
                            )  # fmt: skip
                    if loss is not None and statistics is None and phase == 0:
                        if ONE_J:
                            loss_sum += divergence
                        else:
                            again = (index > 0) | (first > 0)
                            add_to_memory(loss + rival, divergence, rival < told, again)
                    rounded = as_operand(difference, OPERAND, PRECISION)
                    if weight is None:
                        if out is not None:
                            store_map_gradient(
                                out + local.to(tl.int64) * out_row * STUDENT_UNIT, difference,
                                rival, student_maps, key, student_width, seen, out_head, out_key,
                                STUDENT_UNIT, CONTIGUOUS, WIDE, TO_MAPS,
                            )  # fmt: skip
                    elif out is not None and phase == (1 if LONG else 0):
                        map_gradient = tl.dot(
                            rounded, mixing, map_gradient, input_precision=PRECISION
                        )
                    if phase == 0 and (weight_slots is not None or (LONG and out is not None)):
                        change = tl.dot(tl.trans(rounded), operand, input_precision=PRECISION)
                        if LONG:
                            delta += tl.sum(mixing.to(tl.float32) * change, 0)
                        if weight_slots is not None and ONE_J:
                            weight_sum += change
                        elif weight_slots is not None:
                            place, mask = weight_places(rival, head, teacher_maps, student_maps)
                            again = (index > 0) | (first > 0) | (accumulate != 0)
                            add_to_memory(weight_slots + place, change, mask, again)
                if weight is not None and out is not None and phase == (1 if LONG else 0):
                    if not TO_MAPS:
                        if not ONE_J:  # held through the loop it would be spilled
                            tile = load_maps(
                                own, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, SCRATCH
                            )
                        tile = as_sums(tile, OPERAND, BLOCK_H)
                        if LONG:
                            map_gradient = tile * (map_gradient - delta[None, :])
                        else:
                            product = tile * map_gradient
                            if MIXTURE:
                                # 0 · inf where a probability underflowed is 0: no score moves it.
                                product = tl.where(tile == 0, 0.0, product)
                            map_gradient = product - tl.sum(product, 0)[None, :] * tile
                        if MIXTURE:
                            map_gradient = tl.where(tile == 0, 0.0, map_gradient)
                    store_map_gradient(
                        out + local.to(tl.int64) * out_row * STUDENT_UNIT, map_gradient, head,
                        student_maps, key, student_width, seen, out_head, out_key, STUDENT_UNIT,
                        CONTIGUOUS, WIDE, TO_MAPS,
                    )  # fmt: skip
    if loss is not None and statistics is None and ONE_J:
        tl.store(loss + every, loss_sum, mask=every < told)
    if ONE_J and weight_slots is not None:
        place, mask = weight_places(every, head, teacher_maps, student_maps)
        if accumulate != 0:
            weight_sum += tl.load(weight_slots + place, mask=mask, other=0.0)
        tl.store(weight_slots + place, weight_sum, mask=mask)


@triton.jit
def row_statistics(
    own,
    other,
    weight,
    mixing,  # (BLOCK_J, BLOCK_H), where one block holds the weight
    query_lengths,
    key_lengths,
    statistics,  # (STATISTICS, Nt, statistic rows) of the sentence
    loss,  # (Nt,) of the program
    first,
    extents,
    told,  # teacher maps whose loss is stored
    inverse_temperature,
    sharp,
    statistic_rows,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_H: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Measures a row that no program holds whole; programs of the same row write the same."""
    local = first[3]
    student_maps, teacher_maps = own[5], other[5]
    head = tl.arange(0, BLOCK_H)
    for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
        rival = start + tl.arange(0, BLOCK_J)
        if not ONE_J and ONE_H and weight is not None:
            mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
            mixing = as_operand(mixing, OPERAND, PRECISION)
        base, a_sum, d_sum, e_sum, highest, total, d_most, shift = gather_rows(
            own, other, weight, mixing, query_lengths, key_lengths, rival, first, extents,
            inverse_temperature, sharp, CAUSAL, INCLUDE, STUDENT_UNIT, TEACHER_UNIT, CONTIGUOUS,
            WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J, BLOCK_K,
        )  # fmt: skip
        a_base, a_scale, m_base, m_scale, ratio, divergence = finish(
            base, a_sum, d_sum, e_sum, highest, total, d_most, shift
        )
        mask = rival < tl.where(first[1] + local < first[2], teacher_maps, 0)
        here = statistics + rival * statistic_rows + local
        step = teacher_maps * statistic_rows
        store_statistics(here, step, a_base, a_scale, m_base, m_scale, ratio, mask)
        add_to_memory(loss + rival, divergence, rival < told, True)
