"""First read of a row of scores: online sums of student and teacher, and both top-k lists."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.numbers import INF, LOG2E
from fastkd_kernels.tokens.row.scores import load_scores
from fastkd_kernels.tokens.row.topk import (
    NO_KEY,
    empty_list,
    ids_of,
    keys_of,
    merge,
    ordered_bits,
    strongest_of,
    weakest_bits,
)

# Which side's probabilities weigh the log-ratios.
NO_GAP = tl.constexpr(0)
FORWARD = tl.constexpr(1)
BACKWARD = tl.constexpr(2)


@triton.jit
def finite_or_zero(peak):
    """The shift that goes with a running maximum: 0 while there is none."""
    return tl.where(peak == -INF, 0.0, peak)


@triton.jit
def decay(old, new, scale):
    """2^((old − new)·scale) for shifts old ≤ new; at most 1 where `old` stood for no maximum."""
    return tl.exp2(tl.minimum((old - new) * scale, 0.0))


@triton.jit
def _lanes(values, VECTOR: tl.constexpr):
    """Sums of VECTOR neighbours, which one thread holds: no exchange between threads."""
    return tl.sum(tl.reshape(values, [values.shape[0] // VECTOR, VECTOR]), 1)


@triton.jit
def log_ratio_terms(weight, teacher, student, teacher_bits, student_bits):
    """w·(log-ratio) per id: 0 without teacher mass, infinite where the student bans mass."""
    inside = weight * (teacher_bits - student_bits)
    return tl.where(teacher == -INF, 0.0, tl.where(student == -INF, INF, inside))


@triton.jit
def _moved_gap(gap, decayed, shift):
    """Once the maxima have moved; what was infinite stays so."""
    return tl.where(gap == INF, INF, decayed * (gap + shift))


@triton.jit
def read_row(
    student,  # this row's side, see `scores`
    teacher,  # likewise, where DENSE_TEACHER
    vocabulary,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    GAP: tl.constexpr,
    HAS_SPREAD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    RANK_TEACHER: tl.constexpr,
    NEEDS_TOTAL: tl.constexpr,
    TEMPERED: tl.constexpr,
    DENSE_TEACHER: tl.constexpr,
    PREDICT: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,  # how their scores are read
    TEACHER: tl.constexpr,
):
    """Sums over a row, with m and n the largest scores of both sides (0 where all are −inf).

    student_peak, teacher_peak: those maxima, −inf where all are
    sum_one = Σ exp(z − m), sum_p = Σ exp((z − m)/τ_s), sum_q = Σ exp((y − n)/τ_t)
    finite, total: number of z above −inf, and Σ (z − m) over them
    gap = Σ exp((y − n)/τ_t)·((y − n)/τ_t − (z − m)/τ_s)·log₂e where GAP is FORWARD, and
    Σ exp((z − m)/τ_s)·((z − m)/τ_s − (y − n)/τ_t)·log₂e where it is BACKWARD
    spread = Σ exp((z − m)/τ_s)·(z − m)/τ_s·log₂e
    student_best, teacher_best: keys of the k largest; prediction: the first largest z
    """
    LANES: tl.constexpr = BLOCK_V // VECTOR
    student_peak = -INF
    teacher_peak = -INF
    sum_one = tl.zeros([LANES], tl.float32)
    sum_p = tl.zeros([LANES], tl.float32)
    sum_q = tl.zeros([LANES], tl.float32)
    finite = tl.zeros([LANES], tl.float32)
    total = tl.zeros([LANES], tl.float32)
    gap = tl.zeros([LANES], tl.float32)
    spread = tl.zeros([LANES], tl.float32)
    prediction = 0
    student_best = empty_list(TOP_K, TOP_K_PAD)
    teacher_best = empty_list(TOP_K, TOP_K_PAD)
    student_bits = student_scale * LOG2E
    teacher_bits = teacher_scale * LOG2E
    for start in range(0, vocabulary, BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)
        inside = ids < vocabulary
        z = load_scores(student, ids, inside, STUDENT)
        if DENSE_TEACHER:
            y = load_scores(teacher, ids, inside, TEACHER)
        z_peak = tl.max(z, 0)
        if PREDICT and not HAS_RANK:
            if z_peak > student_peak:
                prediction = tl.min(tl.where(z == z_peak, ids, vocabulary), 0)
        if HAS_RANK:
            if ordered_bits(z_peak) > weakest_bits(student_best):
                student_best = merge(student_best, tl.where(inside, keys_of(z, ids), NO_KEY))
        old_m = finite_or_zero(student_peak)
        student_peak = tl.maximum(student_peak, z_peak)
        m = finite_or_zero(student_peak)
        centred = z - m
        old_p = sum_p if TEMPERED else sum_one
        if HAS_CE or not TEMPERED:
            grown = tl.exp2(centred * LOG2E)
            sum_one = sum_one * decay(old_m, m, LOG2E) + _lanes(grown, VECTOR)
        if TEMPERED:
            grown = tl.exp2(centred * student_bits)
            sum_p = sum_p * decay(old_m, m, student_bits) + _lanes(grown, VECTOR)
        student_log = centred * (student_bits if TEMPERED else LOG2E)
        grown_p = grown  # the last one taken
        if HAS_SPREAD:
            moved = spread + old_p * ((old_m - m) * student_bits)
            terms = tl.where(z == -INF, 0.0, grown_p * student_log)
            spread = decay(old_m, m, student_bits) * moved + _lanes(terms, VECTOR)
        if NEEDS_TOTAL:
            total += finite * (old_m - m) + _lanes(tl.where(z == -INF, 0.0, centred), VECTOR)
            finite += _lanes(tl.where(z == -INF, 0.0, 1.0), VECTOR)
        if DENSE_TEACHER:
            y_peak = tl.max(y, 0)
            if RANK_TEACHER:
                if ordered_bits(y_peak) > weakest_bits(teacher_best):
                    teacher_best = merge(teacher_best, tl.where(inside, keys_of(y, ids), NO_KEY))
            old_n = finite_or_zero(teacher_peak)
            teacher_peak = tl.maximum(teacher_peak, y_peak)
            n = finite_or_zero(teacher_peak)
            if HAS_KD:
                bits = (y - n) * teacher_bits
                weight = tl.exp2(bits)
                old_q = decay(old_n, n, teacher_bits)
                shift = (old_n - n) * teacher_bits - (old_m - m) * student_bits
                if GAP == FORWARD:
                    terms = log_ratio_terms(weight, y, z, bits, student_log)
                    gap = _moved_gap(gap, old_q, sum_q * shift) + _lanes(terms, VECTOR)
                elif GAP == BACKWARD:
                    gone = decay(old_m, m, student_bits)
                    terms = log_ratio_terms(grown_p, z, y, student_log, bits)
                    gap = _moved_gap(gap, gone, -old_p * shift) + _lanes(terms, VECTOR)
                sum_q = sum_q * old_q + _lanes(weight, VECTOR)
    if not TEMPERED:
        sum_p = sum_one
    if HAS_RANK:
        prediction = ids_of(strongest_of(student_best, TOP_K, TOP_K_PAD))
    return (
        student_peak,
        teacher_peak,
        tl.sum(sum_one, 0),
        tl.sum(sum_p, 0),
        tl.sum(sum_q, 0),
        tl.sum(finite, 0),
        tl.sum(total, 0),
        tl.sum(gap, 0),
        tl.sum(spread, 0),
        student_best,
        teacher_best,
        prediction,
    )


@triton.jit
def read_beyond(
    whole,  # peak, sum_one, finite, total and prediction of the ids below `first`
    student,  # this row's side, see `scores`
    first,
    vocabulary,
    SMOOTH: tl.constexpr,
    PREDICT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,
):
    """The same of all ids below `vocabulary`."""
    peak, sum_one, finite, total, prediction = whole
    logits, step, factor, cap = student
    others = (logits + first.to(tl.int64) * step, step, factor, cap)
    (
        other_peak, _, other_one, _, _, other_finite, other_total, _, _, _, _, other_id,
    ) = read_row(
        others, (None, None, None, None), vocabulary - first, 1.0, 1.0, True, False, NO_GAP,
        False, False, False, SMOOTH, False, False, PREDICT, 1, 2, BLOCK_V, VECTOR, STUDENT, 0,
    )  # fmt: skip
    if PREDICT:
        prediction = tl.where(other_peak > peak, first + other_id, prediction)
    old, other = finite_or_zero(peak), finite_or_zero(other_peak)
    peak = tl.maximum(peak, other_peak)
    m = finite_or_zero(peak)
    sum_one = sum_one * decay(old, m, LOG2E) + other_one * decay(other, m, LOG2E)
    total += finite * (old - m) + other_total + other_finite * (other - m)
    return peak, sum_one, finite + other_finite, total, prediction
