"""What a row is summed up to before it is compared: of every id, or by a list and its rest."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, REVERSE_KL
from fastkd_kernels.tokens.row.listed import SPREAD, compare_listed
from fastkd_kernels.tokens.row.numbers import INF, LOG2E
from fastkd_kernels.tokens.row.read import (
    BACKWARD,
    FORWARD,
    NO_GAP,
    finite_or_zero,
    read_beyond,
    read_row,
)


@triton.jit
def row_sums(
    by_student,  # this row's sides, see `scores`
    by_teacher,
    given,  # its list
    kept,  # (K,) the student's scores at the list's ids, written, or None
    known,  # of the list, see `summed_up`
    compared,
    vocabulary,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    beta,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    FORM: tl.constexpr,
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    LISTS: tl.constexpr,
    REST: tl.constexpr,
    EVERY: tl.constexpr,
    CUT: tl.constexpr,
    PREDICT: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,  # how scores are read
    TEACHER: tl.constexpr,
):
    """Of the ids that are compared, with m and n the largest scores of both sides, 0 without any:

    m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    Σ exp((z − m)/τ_s), Σ exp((y − n)/τ_t), gap and spread, see `read_row`; 1 for a sum of 0
    whether any student score, any teacher score is above −inf; Σq
    of all ids, for the cross-entropy: m, Σ exp(z − m), the number of finite z, Σ (z − m) over them
    keys of the k largest of both sides
    the first largest z of all ids
    """
    listed_peak, mass, rest_score, listed_best, _ = known
    SPREADS: tl.constexpr = HAS_KD and LISTS and REST == SPREAD and not EVERY
    gap_of: tl.constexpr = FORWARD if FORM == KL else (BACKWARD if FORM == REVERSE_KL else NO_GAP)
    (
        student_peak, teacher_peak, sum_one, sum_p, sum_q, finite, total, gap, spread,
        student_best, teacher_best, first_id,
    ) = read_row(
        by_student, by_teacher, compared, student_scale, teacher_scale,
        HAS_CE, HAS_KD, gap_of, HAS_ENTROPY, HAS_RANK, HAS_RANK and not LISTS, SMOOTH or SPREADS,
        TEMPERED, EVERY, PREDICT, TOP_K, TOP_K_PAD, BLOCK_V, VECTOR, STUDENT, TEACHER,
    )  # fmt: skip
    # What the cross-entropy sums up, and the prediction, are of all ids.
    whole = (student_peak, sum_one, finite, total, first_id)
    if CUT and (HAS_CE or PREDICT):
        whole = read_beyond(
            whole, by_student, compared, vocabulary, SMOOTH, PREDICT, BLOCK_V, VECTOR, STUDENT
        )
    ce_peak, ce_sum, ce_finite, ce_total, first_id = whole
    if LISTS:
        teacher_best = listed_best
        if EVERY:
            mass = 1.0
        else:
            teacher_peak = listed_peak
        if HAS_KD and not EVERY:
            sum_q, gap = compare_listed(
                given, kept, by_student, compared, student_peak, teacher_peak, student_scale,
                teacher_scale, rest_score, finite, total, REST, BLOCK_K, STUDENT,
            )  # fmt: skip
    alive = student_peak > -INF
    taught = teacher_peak > -INF
    mass = tl.where(taught, mass, 0.0)
    ce_sum = tl.where(ce_peak > -INF, ce_sum, 1.0)
    sum_p = tl.where(alive, sum_p, 1.0)
    sum_q = tl.where(sum_q > 0, sum_q, 1.0)
    of_ce = (finite_or_zero(ce_peak), ce_sum, ce_finite, ce_total)
    best = (student_best, teacher_best)
    m, n = finite_or_zero(student_peak), finite_or_zero(teacher_peak)
    student_bits, teacher_bits = student_scale * LOG2E, teacher_scale * LOG2E
    shifts = (m, n, student_bits, teacher_bits, tl.log2(sum_p), tl.log2(sum_q), beta)
    return shifts, (sum_p, sum_q, gap, spread), (alive, taught, mass), of_ce, best, first_id
