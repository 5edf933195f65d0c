"""Token losses and their gradient, one program per row.

Two reads of the logits, three where the divergence needs both distributions normalised. A list
is written out as logits of every id, in scratch, where its divergence is not a sum over it.
"""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import (
    KL,
    REVERSE_KL,
    read_divergence,
    share_factor,
)
from fastkd_kernels.tokens.row.gradient import write_gradient
from fastkd_kernels.tokens.row.listed import (
    SPREAD,
    TAIL,
    compare_listed,
    compare_with_tail,
    fill_scores,
    read_rest,
    scores_at,
    summed_up,
)
from fastkd_kernels.tokens.row.numbers import INF, LN2, LOG2E
from fastkd_kernels.tokens.row.rank import ranking
from fastkd_kernels.tokens.row.read import (
    BACKWARD,
    FORWARD,
    NO_GAP,
    decay,
    finite_or_zero,
    read_beyond,
    read_row,
)
from fastkd_kernels.tokens.row.scores import load_scores
from fastkd_kernels.tokens.row.topk import ids_of, scores_of, strongest_of
from fastkd_kernels.tokens.row.write import cross_entropy, store_parts, zero_row

NO_TEACHER = tl.constexpr(0)
DENSE = tl.constexpr(1)
LISTED = tl.constexpr(2)

# Sizes and strides change from batch to batch and must not be compiled in.
_SIZES = (
    "rows",
    "inner",
    "student_outer",
    "student_inner",
    "teacher_outer",
    "teacher_inner",
    "listed",
    "scale_step",
    "vocabulary_units",
    "compared_units",
)
POINTERS = (
    "student",
    "teacher",
    "ids",
    "log_probs",
    "kept",
    "target",
    "counted",
    "scale",
    "losses",
    "parts",
    "prediction",
    "gradient",
)
# Of sizes and floats, what changes from call to call of one layout.
VARYING = ("gain", "rows")


@triton.jit(do_not_specialize=_SIZES)
def token_losses_fwd(
    student,  # (rows, V) logits at outer·student_outer + inner·student_inner + id·student_step
    teacher,  # likewise, (rows, n) float32 scratch where WRITTEN, or None
    ids,  # (rows, K) of a listed teacher, or None
    log_probs,  # (rows, K)
    kept,  # (rows, K) float32 scratch where GRADIENT
    target,  # (rows,) or None
    counted,  # (rows,) or None
    scale,  # (rows,) or (1,) float32 factor of the gradient beside `gain`, or None
    losses,  # (rows,) float32
    parts,  # its components: (4, `rows`) float32, maybe of a longer table
    prediction,  # (rows,) int64 where PREDICT
    gradient,  # (rows, V) where GRADIENT; may be the student's own contiguous logits
    gain,
    rows,
    inner,
    student_outer,
    student_inner,
    student_step,
    teacher_outer,
    teacher_inner,
    teacher_step,
    listed,  # K
    scale_step,
    vocabulary_units,
    compared_units,
    ce_weight,
    kd_weight,
    rank_weight,
    entropy_weight,
    smoothing,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    beta,
    student_factor,  # what scores are read by, see `scores`
    student_cap,
    teacher_factor,
    teacher_cap,
    UNIT: tl.constexpr,  # divides V and the row strides, which come divided by it
    COMPARED_UNIT: tl.constexpr,  # likewise of n, where CUT
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    FORM: tl.constexpr,  # of the divergence
    NVIDIA: tl.constexpr,  # whether its own logarithm may be used
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,  # τ_s ≠ 1
    TEACHER: tl.constexpr,
    REST: tl.constexpr,
    STUDENT_SCORES: tl.constexpr,
    TEACHER_SCORES: tl.constexpr,
    CUT: tl.constexpr,  # only the ids below n are compared with the teacher's
    PREDICT: tl.constexpr,
    GRADIENT: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,  # logits in 16 bytes
):
    row = tl.program_id(0).to(tl.int64)
    rows = rows.to(tl.int64)
    vocabulary = vocabulary_units * UNIT
    compared = compared_units * COMPARED_UNIT if CUT else vocabulary
    if PREDICT:
        prediction += row
    if GRADIENT:
        gradient += row * vocabulary
    if counted is not None:
        if tl.load(counted + row) == 0:
            zero_row(
                losses + row,
                parts + row,
                rows,
                prediction,
                gradient,
                vocabulary,
                PREDICT,
                GRADIENT,
                BLOCK_V,
            )
            return
    student += (row // inner * student_outer + row % inner * student_inner) * UNIT
    if TEACHER == DENSE:
        teacher += (row // inner * teacher_outer + row % inner * teacher_inner) * UNIT
    TAILED: tl.constexpr = HAS_KD and TEACHER == LISTED and REST == TAIL
    WRITTEN: tl.constexpr = HAS_KD and TEACHER == LISTED and (FORM != KL or REST == TAIL)
    # By logits of every id, or by the list and what all other ids share.
    EVERY: tl.constexpr = TEACHER == DENSE or (WRITTEN and REST != TAIL)
    student_bits = student_scale * LOG2E
    teacher_bits = teacher_scale * LOG2E

    mass = 1.0
    rest_score = -INF
    given = (None, None, None)
    if TEACHER == LISTED:
        given = (ids + row * listed, log_probs + row * listed, listed)
        if GRADIENT and HAS_KD and not EVERY:
            kept += row * listed
        listed_peak, mass, rest_score, listed_best, known_ids = summed_up(
            given, compared, REST, HAS_RANK, TOP_K, TOP_K_PAD, BLOCK_K
        )
        if WRITTEN:
            teacher += row * compared
            fill_scores(teacher, given, compared, rest_score, BLOCK_V, BLOCK_K)
    by_student = (student, student_step, student_factor, student_cap)
    by_teacher = (teacher, teacher_step, teacher_factor, teacher_cap)
    gap_of: tl.constexpr = FORWARD if FORM == KL else (BACKWARD if FORM == REVERSE_KL else NO_GAP)
    (
        student_peak, teacher_peak, sum_one, sum_p, sum_q, finite, total, gap, spread,
        student_best, teacher_best, first_id,
    ) = read_row(
        by_student, by_teacher, compared, student_scale, teacher_scale,
        HAS_CE, HAS_KD, gap_of, HAS_ENTROPY, HAS_RANK, HAS_RANK and TEACHER == DENSE,
        SMOOTH or (HAS_KD and TEACHER == LISTED and REST == SPREAD and not EVERY), TEMPERED,
        EVERY, PREDICT, TOP_K, TOP_K_PAD, BLOCK_V, VECTOR, STUDENT_SCORES, TEACHER_SCORES,
    )  # fmt: skip
    # What the cross-entropy sums up, and the prediction, are of all ids.
    whole = (student_peak, sum_one, finite, total, first_id)
    if CUT and (HAS_CE or PREDICT):
        whole = read_beyond(
            whole, by_student, compared, vocabulary, SMOOTH, PREDICT, BLOCK_V, VECTOR,
            STUDENT_SCORES,
        )  # fmt: skip
    ce_peak, ce_sum, ce_finite, ce_total, first_id = whole
    if PREDICT:
        tl.store(prediction, first_id.to(tl.int64))
    if TEACHER == LISTED:
        teacher_best = listed_best
        if EVERY:
            mass = 1.0
        else:
            teacher_peak = listed_peak
        if HAS_KD and not EVERY:
            sum_q, gap = compare_listed(
                given, kept, by_student, compared, student_peak, teacher_peak, student_scale,
                teacher_scale, rest_score, finite, total, REST, GRADIENT, BLOCK_K, STUDENT_SCORES,
            )  # fmt: skip
    alive = student_peak > -INF
    taught = teacher_peak > -INF
    mass = tl.where(taught, mass, 0.0)
    m = finite_or_zero(student_peak)
    n = finite_or_zero(teacher_peak)
    ce_m = finite_or_zero(ce_peak)
    ce_sum = tl.where(ce_peak > -INF, ce_sum, 1.0)
    sum_p = tl.where(alive, sum_p, 1.0)
    sum_q = tl.where(sum_q > 0, sum_q, 1.0)

    ce = 0.0
    kd = 0.0
    rank = 0.0
    entropy = 0.0
    label = -1
    z_label = -INF
    y_label = rest_score
    known = False
    log_p_sum = tl.log2(sum_p)
    log_q_sum = tl.log2(sum_q)
    slopes = 0.0
    share_of_rest = 0.0
    if HAS_CE:
        label = tl.load(target + row).to(tl.int32)
        known = (label >= 0) & (label < vocabulary)
        z_label = load_scores(by_student, label, known, STUDENT_SCORES)
        if HAS_KD and EVERY:
            y_label = load_scores(by_teacher, label, known & (label < compared), TEACHER_SCORES)
        ce = cross_entropy(z_label - ce_m, tl.log(ce_sum), ce_finite, ce_total, smoothing, SMOOTH)
    if TAILED:
        log_q_sum -= tl.log2(tl.where(mass > 0, mass, 1.0))
        shifts = (m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta)
        rest_bits = read_rest(
            by_student, teacher, compared, m, student_bits, BLOCK_V, VECTOR, STUDENT_SCORES
        )
        # Where every id is listed there is no other outcome, and what misses is rounding.
        q_rest_bits = tl.log2(tl.where(known_ids < compared, tl.maximum(1.0 - mass, 0.0), 0.0))
        kd, slopes, share_of_rest = compare_with_tail(
            given, compared, by_student, shifts, rest_bits - log_p_sum,
            q_rest_bits, FORM, NVIDIA, BLOCK_K, STUDENT_SCORES,
        )  # fmt: skip
        kd = tl.where(alive, kd, INF if FORM == KL else 0.0)
        kd = tl.where(taught, kd, 0.0)
    elif HAS_KD and FORM == KL:
        log_mass = tl.log(tl.where(mass > 0, mass, 1.0))
        kd = mass * (gap * LN2 / sum_q - tl.log(sum_q) + log_mass + tl.log(sum_p))
        kd = tl.where(gap == INF, INF, kd)
    elif HAS_KD:
        kd = LN2 * (gap / sum_p - log_p_sum + log_q_sum)
        slopes = kd / LN2
        # What the teacher bans has a slope of its own, so such a row is read once more.
        if FORM != REVERSE_KL or gap == INF:
            shifts = (m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta)
            kd, slopes = read_divergence(
                by_student, by_teacher, compared, shifts, FORM, NVIDIA, BLOCK_V, VECTOR,
                STUDENT_SCORES, TEACHER_SCORES,
            )  # fmt: skip
        kd = tl.where(alive & taught, kd, 0.0)
    if HAS_ENTROPY:
        entropy = LN2 * (log_p_sum - spread / sum_p)
        entropy = tl.where(alive, entropy, 0.0)
    if HAS_RANK:
        used = tl.arange(0, TOP_K_PAD) < TOP_K
        teacher_ids = ids_of(teacher_best)
        student_ids = ids_of(student_best)
        z_teacher_ids = load_scores(by_student, teacher_ids, used, STUDENT_SCORES)
        z_student_ids = tl.where(used, scores_of(student_best), -INF)
        y_teacher_ids = tl.where(used, scores_of(teacher_best), -INF)
        if TEACHER == DENSE:
            y_student_ids = load_scores(by_teacher, student_ids, used, TEACHER_SCORES)
        else:
            y_student_ids = scores_at(student_ids, given, compared, rest_score, TOP_K_PAD, BLOCK_K)
        rank, by_teacher_ids, by_student_ids = ranking(
            tl.exp2((z_teacher_ids - m) * student_bits) / sum_p,
            tl.exp2((z_student_ids - m) * student_bits) / sum_p,
            y_teacher_ids,
            y_student_ids,
            teacher_best == strongest_of(teacher_best, TOP_K, TOP_K_PAD),
            used,
        )
        rank = tl.where(alive & taught, rank, 0.0)
    loss = 0.0
    if HAS_CE:
        loss += ce_weight * ce
    if HAS_KD:
        loss += kd_weight * kd
    if HAS_RANK:
        loss += rank_weight * rank
    if HAS_ENTROPY:
        loss += entropy_weight * entropy
    tl.store(losses + row, loss)
    store_parts(parts + row, rows, ce, kd, rank, entropy)

    if GRADIENT:
        lists = (None, None, None, None, None, None, None, None, None, None)
        factor = gain
        if scale is not None:
            factor *= tl.load(scale + row * scale_step)
        ce_factor = factor * ce_weight
        factor *= student_scale
        kd_factor = factor * kd_weight
        rank_factor = tl.where(taught, factor * rank_weight, 0.0) / sum_p
        by_one = 0.0
        by_beyond = 0.0
        by_p = 0.0
        by_q = 0.0
        by_log = 0.0
        by_share = 0.0
        by_tail = 0.0
        log_sums = log_p_sum - log_q_sum
        smooth = 0.0
        if HAS_CE:
            by_beyond = ce_factor / ce_sum
            by_one = by_beyond * decay(m, ce_m, LOG2E) if CUT else by_beyond
        if HAS_KD and (FORM != KL or TAILED):
            by_share = tl.where(taught, kd_factor, 0.0) * share_factor(beta, FORM) / sum_p
            by_p -= by_share * slopes
            by_tail = by_share * share_of_rest
        elif HAS_KD:
            by_p += kd_factor * mass / sum_p
        if HAS_KD and FORM == KL:
            by_q = kd_factor * mass / sum_q
            if TAILED:
                log_sums = rest_bits
                by_tail = tl.where(taught, kd_factor, 0.0) * share_of_rest
        if HAS_ENTROPY:
            by_log = -factor * entropy_weight * LN2 / sum_p
            by_p -= by_log * spread / sum_p
        if HAS_RANK:
            by_p -= rank_factor * rank
            lists = (
                teacher_ids,
                z_teacher_ids,
                y_teacher_ids,
                by_teacher_ids,
                student_ids,
                z_student_ids,
                y_student_ids,
                by_student_ids,
                rank_factor,
                used,
            )
        if HAS_CE and not TEMPERED:
            by_p += by_one
        if SMOOTH:
            smooth = ce_factor * smoothing / tl.maximum(ce_finite, 1.0)
        factors = (
            m,
            n,
            student_bits,
            teacher_bits,
            by_one,
            by_p,
            by_q,
            smooth,
            ce_factor * (1 - smoothing),
            label,
            by_log,
            by_share,
            log_sums,
            beta,
            by_tail,
        )
        write_gradient(
            gradient, by_student, by_teacher, vocabulary, compared, given, kept, rest_score,
            (z_label, y_label, known), lists, factors, (ce_m, by_beyond, smooth), HAS_CE, HAS_KD,
            HAS_RANK, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAILED, STUDENT_SCORES,
            TEACHER_SCORES, CUT, EVERY, REST, BLOCK_V, BLOCK_K,
        )  # fmt: skip
