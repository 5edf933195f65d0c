"""The gradient of the mixed maps: to the student's scores or maps, and to the weight."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.read import as_operand, load_weight, row_extent
from fastkd_kernels.attention.mixing.rounded import finish_rounded
from fastkd_kernels.attention.mixing.statistics import gather_rows, narrow_from
from fastkd_kernels.attention.mixing.store import add_to_memory, weight_places, write_zeros
from fastkd_kernels.attention.mixing.walk import walk_long_row, walk_row
from fastkd_kernels.attention.numerics import STATISTICS, finish, store_statistics

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
    teacher,  # (sentences, Nt, rows, keys), by strides; of the scratch it may be written over
    weight,  # (Nt, Ns), or None: head n against head n
    query_lengths, key_lengths,
    statistics,  # (sentences, STATISTICS, Nt, statistic rows), or None: rows are held whole;
    # with `loss`: (sentences, head parts, STATISTICS, Nt, rows), for this program to fill
    upstream,  # (B, Nt) or, with a step of 0, one number; None for ones
    loss,  # (B, parts, Nt), a part a program; or None: it is known, as are the statistics
    out,  # gradient of the maps or scores, like `student`; or None
    weight_slots,  # (programs, Nt, Ns), or None
    student_sentence, student_head, student_row, student_key,
    teacher_sentence, teacher_head, teacher_row, teacher_key,
    out_sentence, out_head, out_row, out_key,
    student_width,  # keys a row of `student` and `out` has, in their unit
    teacher_width,
    student_maps, teacher_maps, queries, keys,
    first_sentence, first_row, rows, row_groups, rows_each,
    inverse_temperature,
    sharp,  # whether exp(a) may overflow
    statistic_rows, upstream_step, upstream_factor, accumulate,
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
):  # fmt: skip
    student_maps = student_maps // HEAD_UNIT * HEAD_UNIT
    if SCRATCH:  # all maps lie there alike
        tl.static_assert(STUDENT_UNIT == TEACHER_UNIT)
        out_sentence, out_row, out_head = student_sentence, student_row, student_head
        teacher_row, teacher_head, teacher_width = student_row, student_head, student_width
        out_key, teacher_key = student_key, student_key
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
        upstream += sentence.to(tl.int64) * teacher_maps * (upstream_step if TO_MAPS else 1)
    if statistics is not None:
        # Programs that share a row measure it each for itself.
        places = slot if loss is None else slot * head_parts + head_part
        statistics += places.to(tl.int64) * STATISTICS * teacher_maps * statistic_rows
    head = head_part * BLOCK_H + tl.arange(0, BLOCK_H)
    every = tl.arange(0, BLOCK_J)
    told = tl.where(head_part == 0, teacher_maps, 0)  # teacher maps whose loss this program writes
    loss_sum = tl.zeros((BLOCK_J,), tl.float32)
    mixing = tl.zeros((BLOCK_J, BLOCK_H), tl.float32).to(OPERAND)
    weight_sum = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)
    if loss is not None:
        loss += (sentence.to(tl.int64) * parts + part + row_group) * teacher_maps
        if statistics is not None:
            write_zeros(loss, loss_sum, told, BLOCK_J)
    if weight_slots is not None:
        weight_slots += program.to(tl.int64) * teacher_maps * student_maps
    if ONE_J and weight is not None:
        mixing = load_weight(weight, every, head, teacher_maps, student_maps)
        mixing = as_operand(mixing, OPERAND, PRECISION)
    strides = (
        student_row, student_head, student_key, student_width, student_maps, teacher_row,
        teacher_head, teacher_key, teacher_width, teacher_maps, out_row, out_head, out_key,
    )  # fmt: skip
    for index in range(rows_each):
        place = index, row_group * rows_each + index, sentence, first_row, row_end, queries, keys
        loss_sum, weight_sum = row_gradient(
            student, teacher, out, strides, weight, mixing, head, query_lengths, key_lengths,
            statistics, upstream, loss, weight_slots, loss_sum, weight_sum, place,
            (told, accumulate, statistic_rows, upstream_step, upstream_factor),
            (inverse_temperature, sharp), MIXTURE, TO_MAPS, CAUSAL, INCLUDE, STUDENT_UNIT,
            TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, NVIDIA, LONG, ONE_H,
            ONE_J, BLOCK_H, BLOCK_J, BLOCK_K,
        )  # fmt: skip
    if loss is not None and statistics is None and ONE_J:
        tl.store(loss + every, loss_sum, mask=every < told)
    if ONE_J and weight_slots is not None:
        place, mask = weight_places(every, head, teacher_maps, student_maps)
        if accumulate != 0:
            weight_sum += tl.load(weight_slots + place, mask=mask, other=0.0)
        tl.store(weight_slots + place, weight_sum, mask=mask)


@triton.jit
def row_gradient(
    student, teacher, out, strides, weight, mixing, head, query_lengths, key_lengths,
    statistics, upstream, loss, weight_slots,
    loss_sum,  # (BLOCK_J,), where ONE_J
    weight_sum,  # (BLOCK_J, BLOCK_H), where ONE_J
    place,  # (which of the program's rows, row of the chunk, sentence, first row, end, Tq, Tk)
    asked,  # (maps whose loss is told, accumulate, statistic rows, step and factor of upstream)
    softmax,  # (1/τ, sharp)
    MIXTURE: tl.constexpr,
    TO_MAPS: tl.constexpr,
    CAUSAL: tl.constexpr,
    INCLUDE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,
    LONG: tl.constexpr,
    ONE_H: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of one row; the sums with what it adds to them."""
    index, local, sentence, first_row, row_end, queries, keys = place
    told, accumulate, statistic_rows, _, _ = asked
    inverse_temperature, sharp = softmax
    (
        student_row, student_head, student_key, student_width, student_maps, teacher_row,
        teacher_head, teacher_key, teacher_width, teacher_maps, out_row, out_head, out_key,
    ) = strides  # fmt: skip
    MEASURED: tl.constexpr = loss is not None and statistics is not None
    seen, counted = row_extent(
        query_lengths, key_lengths, sentence, first_row + local, row_end, queries, keys, CAUSAL,
        INCLUDE,
    )  # fmt: skip
    if MEASURED:
        row_statistics(
            (student, student_row, student_head, student_key, student_width, student_maps),
            (teacher, teacher_row, teacher_head, teacher_key, teacher_width, teacher_maps),
            weight, mixing, query_lengths, key_lengths, statistics, loss,
            (sentence, first_row, row_end, local, 1), (queries, keys), counted, told,
            inverse_temperature, sharp, statistic_rows, CAUSAL, INCLUDE, STUDENT_UNIT,
            TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, NVIDIA, ONE_H, ONE_J,
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
    if out is not None:
        out += local.to(tl.int64) * out_row * STUDENT_UNIT
    # A program that holds whole rows measures them first, padded keys that count as well.
    high = counted if statistics is None and not MIXTURE else seen
    if MEASURED and out is None and weight_slots is None:
        high = 0
    if not ONE_J and (index == 0) & (high == 0):
        # No block of this row writes what those of the next ones add to.
        if loss is not None and statistics is None:
            write_zeros(loss, loss_sum, told, BLOCK_J)
        if weight_slots is not None and accumulate == 0:
            for start in range(0, teacher_maps, BLOCK_J):
                rival = start + tl.arange(0, BLOCK_J)
                slots, mask = weight_places(rival, head, teacher_maps, student_maps)
                add_to_memory(weight_slots + slots, weight_sum, mask, False)
    delta = tl.zeros((BLOCK_H,), tl.float32)  # row sum of P ∘ dP
    extent = seen, counted, high
    if LONG and ONE_H:
        loss_sum, weight_sum = walk_long_row(
            own, other, out, out_head, out_key, weight, mixing, head, statistics, upstream, loss,
            weight_slots, loss_sum, weight_sum, delta, index, local, extent, asked, softmax,
            MIXTURE, STUDENT_UNIT, TEACHER_UNIT, CONTIGUOUS, WIDE, OPERAND, PRECISION, NVIDIA,
            ONE_J, BLOCK_H, BLOCK_J, BLOCK_K,
        )  # fmt: skip
    else:
        for walk in tl.static_range(2 if LONG else 1):
            delta, loss_sum, weight_sum = walk_row(
                own, other, out, out_head, out_key, weight, mixing, head, statistics, upstream,
                loss, weight_slots, loss_sum, weight_sum, delta, index, local, extent, asked,
                softmax, walk == 0, walk == 1 or not LONG, LONG, MIXTURE, TO_MAPS, STUDENT_UNIT,
                TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, NVIDIA, ONE_H, ONE_J,
                BLOCK_H, BLOCK_J, BLOCK_K,
            )  # fmt: skip
    return loss_sum, weight_sum


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
    counted,
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
    NVIDIA: tl.constexpr,
    ONE_H: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Measures a row that no program holds whole; programs of the same row write the same."""
    narrow = BLOCK_J
    if not ONE_J:
        # Of the row's: what is the same for all rows would be held from the first one on.
        teacher_maps = tl.where(counted > 0, other[5], 0)
        narrow = narrow_from(teacher_maps, OPERAND, BLOCK_J)
    for start in range(0, narrow, BLOCK_J):
        measure_maps(
            own, other, weight, mixing, query_lengths, key_lengths, statistics, loss, start, first,
            extents, told, inverse_temperature, sharp, statistic_rows, CAUSAL, INCLUDE,
            STUDENT_UNIT, TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, NVIDIA,
            ONE_H, ONE_J, BLOCK_H, BLOCK_J, BLOCK_K,
        )  # fmt: skip
    if not ONE_J:
        if narrow < teacher_maps:
            measure_maps(
                own, other, weight, mixing, query_lengths, key_lengths, statistics, loss, narrow,
                first, extents, told, inverse_temperature, sharp, statistic_rows, CAUSAL, INCLUDE,
                STUDENT_UNIT, TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, NVIDIA,
                ONE_H, ONE_J, BLOCK_H, BLOCK_J // 2, BLOCK_K,
            )  # fmt: skip


@triton.jit
def measure_maps(
    own,
    other,
    weight,
    mixing,  # (BLOCK_J, BLOCK_H), where ONE_J
    query_lengths,
    key_lengths,
    statistics,
    loss,
    start,
    first,
    extents,
    told,
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
    NVIDIA: tl.constexpr,
    ONE_H: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Statistics and loss of BLOCK_J teacher maps of a row, from `start` on."""
    local = first[3]
    student_maps, teacher_maps = own[5], other[5]
    rival = start + tl.arange(0, BLOCK_J)
    if not ONE_J and ONE_H and weight is not None:
        head = tl.arange(0, BLOCK_H)
        mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
        mixing = as_operand(mixing, OPERAND, PRECISION)
    base, a_sum, d_sum, e_sum, highest, total, d_most, shift = gather_rows(
        own, other, weight, mixing, query_lengths, key_lengths, start, first, extents,
        inverse_temperature, sharp, CAUSAL, INCLUDE, STUDENT_UNIT, TEACHER_UNIT, CONTIGUOUS,
        WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J, BLOCK_K,
    )  # fmt: skip
    if OPERAND == tl.float32:
        a_base, a_scale, m_base, m_scale, ratio, divergence = finish(
            base, a_sum, d_sum, e_sum, highest, total, d_most, shift
        )
    else:
        a_base, a_scale, m_base, m_scale, ratio, divergence = finish_rounded(
            base, a_sum, d_sum, e_sum, highest, total, d_most, NVIDIA
        )
    mask = rival < tl.where(first[1] + local < first[2], teacher_maps, 0)
    here = statistics + rival * statistic_rows + local
    step = teacher_maps * statistic_rows
    store_statistics(here, step, a_base, a_scale, m_base, m_scale, ratio, mask)
    add_to_memory(loss + rival, divergence, rival < told, True)
