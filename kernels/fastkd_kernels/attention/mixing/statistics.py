"""What the divergence of the mixed maps needs, gathered over the cells of some rows."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.read import (
    as_operand,
    both_sides,
    load_maps,
    load_weight,
    row_extent,
)
from fastkd_kernels.attention.mixing.rounded import LOG2E, rounded_sums
from fastkd_kernels.attention.numerics import (
    FIELDS,
    STEEP,
    add_exponentials,
    gather,
    moved_sum,
)

RUNTIME = (
    "student_sentence student_head student_row student_key teacher_sentence teacher_head "
    "teacher_row teacher_key student_width teacher_width student_maps teacher_maps queries keys "
    "first_sentence first_row rows row_groups rows_each inverse_temperature sharp parts part"
).split()


@triton.jit
def student_operand(
    own,
    mixing,
    weight,
    head,
    key,
    seen,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_H: tl.constexpr,
):
    """The student's maps of a block, as they enter the product; where it is not taken, anything."""
    operand = mixing
    if ONE_H and weight is not None:
        tile = load_maps(own, head, key, seen, UNIT, CONTIGUOUS, WIDE, SCRATCH)
        operand = as_operand(tile, OPERAND, PRECISION)
    return operand


@triton.jit
def block_sums(
    goal,  # as `both_sides` returns them
    mixed,
    inside,
    cells,  # of the block that count
    base,
    shift,
    started,
    inverse_temperature,
    EXACT: tl.constexpr,
):
    """(Σw, Σw·d, Σw·(expm1(d) − d), max |d|) of a block, (1, J), or of what each thread holds of
    rounded maps, (8, J); and the shift, which the first block tells."""
    if EXACT:
        a, m = goal * inverse_temperature, mixed * inverse_temperature
        if started == 0:
            shift = tl.sum(m - a, 0) / cells.to(tl.float32)
        more, more_d, more_e, most = gather(a, m, inside, shift, base, 0)
        more, more_d, more_e = more[None, :], more_d[None, :], more_e[None, :]
        most = most[None, :]
    else:
        more, more_d, more_e, most = rounded_sums(goal, mixed, base, inverse_temperature)
    return more, more_d, more_e, most, shift


@triton.jit
def gather_rows(
    student,  # (maps at the sentence, strides of rows and heads in UNITs, of keys, width, heads)
    teacher,
    weight,
    mixing,  # (BLOCK_J, BLOCK_H), where ONE_H
    query_lengths,
    key_lengths,
    start,  # of the teacher's maps, BLOCK_J of which are taken
    first,  # (sentence, first row of the scratch, its end, first of the rows, how many)
    extents,  # (queries, keys)
    inverse_temperature,
    sharp,
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
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The state of `numerics` over all cells of the rows, (BLOCK_J,) each."""
    sentence, first_row, row_end, first_local, count = first
    queries, keys = extents
    student_maps, student_row, student_head, student_key, student_width, students = student
    teacher_maps, teacher_row, teacher_head, teacher_key, teacher_width, teachers = teacher
    EXACT: tl.constexpr = OPERAND == tl.float32
    head = tl.arange(0, BLOCK_H)
    # Of rounded maps each thread adds up what it holds: they are put together once, at the end.
    apart: tl.constexpr = 1 if EXACT else 8
    a_sum = tl.zeros((apart, BLOCK_J), tl.float32)
    d_sum = tl.zeros((apart, BLOCK_J), tl.float32)
    e_sum = tl.zeros((apart, BLOCK_J), tl.float32)
    d_most = tl.zeros((apart, BLOCK_J), tl.float32)
    left = 0  # cells of blocks that do not count
    shift = tl.zeros((BLOCK_J,), tl.float32)
    base = tl.zeros((BLOCK_J,), tl.float32)
    highest = tl.full((BLOCK_J,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_J,), tl.float32)
    started = 0
    # Walk 1 takes the sums. What is rare has walks of its own: 0 finds the maximum of a where
    # exp(a) may overflow, 2 sums exp(m) where max |d| is large.
    for walk in range(tl.where(sharp != 0, 0, 1), 3):
        walked = count
        if walk == 2:
            highest = tl.full((BLOCK_J,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_J,), tl.float32)
            walked = tl.where(tl.max(tl.max(d_most, 0), 0) > STEEP, count, 0)
        for index in range(walked):
            local = first_local + index
            seen, counted = row_extent(
                query_lengths, key_lengths, sentence, first_row + local, row_end, queries, keys,
                CAUSAL, INCLUDE,
            )  # fmt: skip
            own = (
                student_maps + local.to(tl.int64) * student_row * STUDENT_UNIT,
                student_head, student_key, student_width, students,
            )  # fmt: skip
            other = (
                teacher_maps + local.to(tl.int64) * teacher_row * TEACHER_UNIT,
                teacher_head, teacher_key, teacher_width, teachers,
            )  # fmt: skip
            for first_key in range(0, counted, BLOCK_K):
                key = first_key + tl.arange(0, BLOCK_K)
                tile = student_operand(
                    own, mixing, weight, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, SCRATCH,
                    OPERAND, PRECISION, ONE_H,
                )  # fmt: skip
                goal, mixed = both_sides(
                    own, other, tile, mixing, weight, start, key, seen, STUDENT_UNIT,
                    TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H,
                    BLOCK_J, BLOCK_K, EXACT,
                )  # fmt: skip
                inside = (key < counted)[:, None]
                if walk == 1:
                    cells = tl.minimum(counted - first_key, BLOCK_K)
                    more, more_d, more_e, most, shift = block_sums(
                        goal, mixed, inside, cells, base, shift, started, inverse_temperature, EXACT
                    )
                    started = 1
                    left += BLOCK_K - cells
                    a_sum += more
                    d_sum += more_d
                    e_sum += more_e
                    d_most = tl.maximum(d_most, most)
                elif walk == 0:
                    a = tl.where(inside, goal if EXACT else -goal, float("-inf"))
                    highest = tl.maximum(highest, tl.max(a, 0) * inverse_temperature)
                    base = tl.where(highest == float("-inf"), 0.0, highest)
                else:
                    m = (mixed if EXACT else mixed - goal) * inverse_temperature
                    highest, total = add_exponentials(highest, total, m, inside, 0)
    a_sum, d_sum, e_sum = tl.sum(a_sum, 0), tl.sum(d_sum, 0), tl.sum(e_sum, 0)
    d_most = tl.max(d_most, 0)
    if not EXACT:
        a_sum -= left * tl.exp2(base * -LOG2E)  # they hold zeros, exp(0 − base) each
        e_sum = tl.where(d_most <= STEEP, e_sum, float("inf"))  # to merge plain logarithms
    if tl.max(d_most, 0) <= STEEP:
        highest, total, _ = moved_sum(base, shift, a_sum, d_sum, e_sum)
    return base, a_sum, d_sum, e_sum, highest, total, d_most, shift


@triton.jit(do_not_specialize=RUNTIME)
def mix_statistics_fwd(
    student,  # (sentences, Ns, rows, keys), by strides
    teacher,  # (sentences, Nt, rows, keys), by strides
    weight,  # (Nt, Ns), or None: head n against head n
    query_lengths,
    key_lengths,
    partials,  # (sentences, parts, FIELDS, Nt)
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
    row_groups,
    rows_each,
    inverse_temperature,
    sharp,  # whether exp(a) may overflow
    parts,
    part,  # of the chunk's first program
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
    ONE_H: tl.constexpr,  # one block of student maps holds them all
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    student_maps = student_maps // HEAD_UNIT * HEAD_UNIT
    if SCRATCH:  # all maps lie there alike
        tl.static_assert(STUDENT_UNIT == TEACHER_UNIT)
        teacher_row, teacher_head, teacher_key, teacher_width = (
            student_row, student_head, student_key, student_width,
        )  # fmt: skip
    row_group = tl.program_id(0) % row_groups
    slot = tl.program_id(0) // row_groups
    student += slot.to(tl.int64) * student_sentence * STUDENT_UNIT
    teacher += slot.to(tl.int64) * teacher_sentence * TEACHER_UNIT
    own = student, student_row, student_head, student_key, student_width, student_maps
    other = teacher, teacher_row, teacher_head, teacher_key, teacher_width, teacher_maps
    row_end = tl.minimum(first_row + rows, queries)
    first = first_sentence + slot, first_row, row_end, row_group * rows_each, rows_each
    place = slot.to(tl.int64) * parts + part + row_group
    partials += place * FIELDS * teacher_maps
    narrow = narrow_from(teacher_maps, OPERAND, BLOCK_J)
    for start in range(0, narrow, BLOCK_J):
        write_state(
            own, other, weight, query_lengths, key_lengths, partials, start, first,
            (queries, keys), inverse_temperature, sharp, CAUSAL, INCLUDE, STUDENT_UNIT,
            TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J,
            BLOCK_K,
        )  # fmt: skip
    if narrow < teacher_maps:
        write_state(
            own, other, weight, query_lengths, key_lengths, partials, narrow, first,
            (queries, keys), inverse_temperature, sharp, CAUSAL, INCLUDE, STUDENT_UNIT,
            TEACHER_UNIT, CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H,
            BLOCK_J // 2, BLOCK_K,
        )  # fmt: skip


@triton.jit
def narrow_from(teacher_maps, OPERAND: tl.constexpr, BLOCK_J: tl.constexpr):
    """The map from which on half a block holds those that are left, or the number of maps."""
    left = teacher_maps % BLOCK_J
    narrow = teacher_maps
    if OPERAND != tl.float32:
        narrow = tl.where((left > 0) & (left <= BLOCK_J // 2), teacher_maps - left, teacher_maps)
    return narrow


@triton.jit
def write_state(
    own,
    other,
    weight,
    query_lengths,
    key_lengths,
    partials,  # (FIELDS, Nt) of the program
    start,
    first,
    extents,
    inverse_temperature,
    sharp,
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
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The state of BLOCK_J teacher maps from `start` on."""
    student_maps, teacher_maps = own[5], other[5]
    rival = start + tl.arange(0, BLOCK_J)
    mixing = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)
    if ONE_H and weight is not None:
        mixing = load_weight(weight, rival, tl.arange(0, BLOCK_H), teacher_maps, student_maps)
    mixing = as_operand(mixing, OPERAND, PRECISION)
    base, a_sum, d_sum, e_sum, highest, total, d_most, shift = gather_rows(
        own, other, weight, mixing, query_lengths, key_lengths, start, first, extents,
        inverse_temperature, sharp, CAUSAL, INCLUDE, STUDENT_UNIT, TEACHER_UNIT, CONTIGUOUS,
        WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J, BLOCK_K,
    )  # fmt: skip
    mask = rival < teacher_maps
    here = partials + rival
    tl.store(here, base, mask=mask)
    tl.store(here + teacher_maps, a_sum, mask=mask)
    tl.store(here + 2 * teacher_maps, d_sum, mask=mask)
    tl.store(here + 3 * teacher_maps, e_sum, mask=mask)
    tl.store(here + 4 * teacher_maps, highest, mask=mask)
    tl.store(here + 5 * teacher_maps, total, mask=mask)
    tl.store(here + 6 * teacher_maps, d_most, mask=mask)
    tl.store(here + 7 * teacher_maps, shift, mask=mask)
