"""First read of a row of logits: online sums of student and teacher, and both top-k lists."""

import triton
import triton.language as tl

from fastkd_kernels.tokens_topk import (
    NO_KEY,
    empty_list,
    ids_of,
    keys_of,
    merge,
    ordered_bits,
    strongest_of,
    weakest_bits,
)

LOG2E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))


@triton.jit
def finite_or_zero(peak):
    """The shift that goes with a running maximum: 0 while there is none."""
    return tl.where(peak == -INF, 0.0, peak)


@triton.jit
def _decay(old, new, scale):
    """exp((old − new)·scale) for shifts old ≤ new; at most 1 where `old` stood for no maximum."""
    return tl.exp2(tl.minimum((old - new) * scale, 0.0) * LOG2E)


@triton.jit
def _carry(gap, decay, weight, shift):
    """`gap` = Σ w·d after w shrinks by `decay` and d moves by `shift`; an infinite gap stays."""
    return tl.where(gap == INF, INF, decay * (gap + weight * shift))


@triton.jit
def log_ratio_terms(weight, teacher, student, teacher_diff, student_diff):
    """w·(log-ratio) per id: 0 without teacher mass, infinite where the student bans mass."""
    inside = weight * (teacher_diff - student_diff)
    return tl.where(teacher == -INF, 0.0, tl.where(student == -INF, INF, inside))


@triton.jit
def read_row(
    student,  # this row's logits
    student_stride,
    teacher,  # this row's logits, where DENSE_TEACHER
    teacher_stride,
    vocabulary,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    NEEDS_TOTAL: tl.constexpr,
    TEMPERED: tl.constexpr,
    DENSE_TEACHER: tl.constexpr,
    PREDICT: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Sums over a row, with m and n the largest student and teacher logit (0 where all are −inf).

    student_peak, teacher_peak: those maxima, −inf where all are
    sum_one = Σ exp(z − m), sum_p = Σ exp((z − m)/τ_s), sum_q = Σ exp((y − n)/τ_t)
    finite, total: number of z above −inf, and Σ (z − m) over them
    gap = Σ exp((y − n)/τ_t)·((y − n)/τ_t − (z − m)/τ_s)
    student_best, teacher_best: keys of the k largest; prediction: the first largest z
    """
    student_peak = -INF
    teacher_peak = -INF
    sum_one = 0.0
    sum_p = 0.0
    sum_q = 0.0
    finite = 0.0
    total = 0.0
    gap = 0.0
    prediction = 0
    student_best = empty_list(TOP_K, TOP_K_PAD)
    teacher_best = empty_list(TOP_K, TOP_K_PAD)
    for start in range(0, vocabulary, BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)
        inside = ids < vocabulary
        offsets = ids.to(tl.int64)
        z = tl.load(student + offsets * student_stride, mask=inside, other=-INF).to(tl.float32)
        block_peak = tl.max(z, 0)
        if PREDICT and not HAS_RANK:
            if block_peak > student_peak:
                prediction = tl.min(tl.where(z == block_peak, ids, vocabulary), 0)
        if HAS_RANK:
            if ordered_bits(block_peak) > weakest_bits(student_best):
                student_best = merge(student_best, tl.where(inside, keys_of(z, ids), NO_KEY))
        old_m = finite_or_zero(student_peak)
        student_peak = tl.maximum(student_peak, block_peak)
        m = finite_or_zero(student_peak)
        centred = z - m
        if HAS_CE or not TEMPERED:
            sum_one = sum_one * _decay(old_m, m, 1.0) + tl.sum(tl.exp2(centred * LOG2E), 0)
        if TEMPERED:
            tempered = tl.exp2(centred * (student_scale * LOG2E))
            sum_p = sum_p * _decay(old_m, m, student_scale) + tl.sum(tempered, 0)
        if NEEDS_TOTAL:
            total += finite * (old_m - m) + tl.sum(tl.where(z == -INF, 0.0, centred), 0)
            finite += tl.sum(tl.where(z == -INF, 0.0, 1.0), 0)
        if DENSE_TEACHER:
            y = tl.load(teacher + offsets * teacher_stride, mask=inside, other=-INF)
            y = y.to(tl.float32)
            block_peak = tl.max(y, 0)
            if HAS_RANK:
                if ordered_bits(block_peak) > weakest_bits(teacher_best):
                    teacher_best = merge(teacher_best, tl.where(inside, keys_of(y, ids), NO_KEY))
            old_n = finite_or_zero(teacher_peak)
            teacher_peak = tl.maximum(teacher_peak, block_peak)
            n = finite_or_zero(teacher_peak)
            if HAS_KD:
                teacher_diff = (y - n) * teacher_scale
                weight = tl.exp2(teacher_diff * LOG2E)
                decay = _decay(old_n, n, teacher_scale)
                shift = (old_n - n) * teacher_scale - (old_m - m) * student_scale
                terms = log_ratio_terms(weight, y, z, teacher_diff, centred * student_scale)
                gap = _carry(gap, decay, sum_q, shift) + tl.sum(terms, 0)
                sum_q = sum_q * decay + tl.sum(weight, 0)
    if not TEMPERED:
        sum_p = sum_one
    if HAS_RANK:
        prediction = ids_of(strongest_of(student_best, TOP_K, TOP_K_PAD))
    return (
        student_peak,
        teacher_peak,
        sum_one,
        sum_p,
        sum_q,
        finite,
        total,
        gap,
        student_best,
        teacher_best,
        prediction,
    )
