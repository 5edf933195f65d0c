"""Token losses and their gradient, one program per row.

Two reads of the logits, three where the divergence needs both distributions normalised.
"""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, read_divergence
from fastkd_kernels.tokens.row.gradient import gradient_at
from fastkd_kernels.tokens.row.listed import SPREAD, read_listed, scores_at
from fastkd_kernels.tokens.row.rank import derivative_at, ranking
from fastkd_kernels.tokens.row.read import INF, LN2, LOG2E, finite_or_zero, read_row
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
    teacher,  # likewise, or None
    ids,  # (rows, K) of a listed teacher, or None
    log_probs,  # (rows, K)
    kept,  # (rows, K) float32 scratch where GRADIENT
    target,  # (rows,) or None
    counted,  # (rows,) or None
    scale,  # (rows,) or (1,) float32 factor of the gradient beside `gain`, or None
    losses,  # (rows,) float32
    parts,  # its components ce, kd and rank: (3, `rows`) float32, maybe of a longer table
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
    ce_weight,
    kd_weight,
    rank_weight,
    smoothing,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    beta,
    UNIT: tl.constexpr,  # divides V and the row strides, which come divided by it
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    FORM: tl.constexpr,  # of the divergence; other than KL(q ‖ p) where the teacher is dense
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,  # τ_s ≠ 1
    TEACHER: tl.constexpr,
    REST: tl.constexpr,
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

    (
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
        first_id,
    ) = read_row(
        student,
        student_step,
        teacher,
        teacher_step,
        vocabulary,
        student_scale,
        teacher_scale,
        HAS_CE,
        HAS_KD,
        FORM == KL,
        HAS_RANK,
        SMOOTH or (HAS_KD and TEACHER == LISTED and REST == SPREAD),
        TEMPERED,
        TEACHER == DENSE,
        PREDICT,
        TOP_K,
        TOP_K_PAD,
        BLOCK_V,
        VECTOR,
    )
    if PREDICT:
        tl.store(prediction, first_id.to(tl.int64))
    mass = 1.0
    rest_score = -INF
    if TEACHER == LISTED:
        ids += row * listed
        log_probs += row * listed
        if GRADIENT:
            kept += row * listed
        teacher_peak, sum_q, gap, mass, rest_score, teacher_best = read_listed(
            ids,
            log_probs,
            kept,
            listed,
            student,
            student_step,
            vocabulary,
            student_peak,
            student_scale,
            teacher_scale,
            finite,
            total,
            REST,
            HAS_RANK,
            GRADIENT,
            TOP_K,
            TOP_K_PAD,
            BLOCK_K,
        )
    alive = student_peak > -INF
    taught = teacher_peak > -INF
    mass = tl.where(taught, mass, 0.0)
    m = finite_or_zero(student_peak)
    n = finite_or_zero(teacher_peak)
    sum_one = tl.where(alive, sum_one, 1.0)
    sum_p = tl.where(alive, sum_p, 1.0)
    sum_q = tl.where(sum_q > 0, sum_q, 1.0)

    ce = 0.0
    kd = 0.0
    rank = 0.0
    label = -1
    log_p_sum = 0.0
    log_q_sum = 0.0
    slopes = 0.0
    if HAS_CE:
        label = tl.load(target + row).to(tl.int32)
        known = (label >= 0) & (label < vocabulary)
        z_label = tl.load(student + label.to(tl.int64) * student_step, mask=known, other=-INF)
        z_label = z_label.to(tl.float32)
        y_label = rest_score
        if HAS_KD and TEACHER == DENSE:
            y_label = tl.load(teacher + label.to(tl.int64) * teacher_step, mask=known, other=-INF)
            y_label = y_label.to(tl.float32)
        ce = cross_entropy(z_label - m, tl.log(sum_one), finite, total, smoothing, SMOOTH)
    if HAS_KD and FORM != KL:
        log_p_sum = tl.log2(sum_p)
        log_q_sum = tl.log2(sum_q)
        kd, slopes = read_divergence(
            student,
            student_step,
            teacher,
            teacher_step,
            vocabulary,
            (m, n, student_scale * LOG2E, teacher_scale * LOG2E, log_p_sum, log_q_sum, beta),
            FORM,
            BLOCK_V,
            VECTOR,
        )
        kd = tl.where(alive & taught, kd, 0.0)
    elif HAS_KD:
        log_mass = tl.log(tl.where(mass > 0, mass, 1.0))
        kd = mass * (gap * LN2 / sum_q - tl.log(sum_q) + log_mass + tl.log(sum_p))
        kd = tl.where(gap == INF, INF, kd)
    if HAS_RANK:
        used = tl.arange(0, TOP_K_PAD) < TOP_K
        teacher_ids = ids_of(teacher_best)
        student_ids = ids_of(student_best)
        from_student = teacher_ids.to(tl.int64) * student_step
        z_teacher_ids = tl.load(student + from_student, mask=used, other=-INF).to(tl.float32)
        z_student_ids = tl.where(used, scores_of(student_best), -INF)
        y_teacher_ids = tl.where(used, scores_of(teacher_best), -INF)
        if TEACHER == DENSE:
            from_teacher = student_ids.to(tl.int64) * teacher_step
            y_student_ids = tl.load(teacher + from_teacher, mask=used, other=-INF).to(tl.float32)
        else:
            y_student_ids = scores_at(
                student_ids, ids, log_probs, listed, rest_score, TOP_K_PAD, BLOCK_K
            )
        to_p = student_scale * LOG2E
        rank, by_teacher_ids, by_student_ids = ranking(
            tl.exp2((z_teacher_ids - m) * to_p) / sum_p,
            tl.exp2((z_student_ids - m) * to_p) / sum_p,
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
    tl.store(losses + row, loss)
    store_parts(parts + row, rows, ce, kd, rank)

    if GRADIENT:
        factor = gain
        if scale is not None:
            factor *= tl.load(scale + row * scale_step)
        ce_factor = factor * ce_weight
        kd_factor = factor * kd_weight * student_scale
        rank_factor = tl.where(taught, factor * rank_weight * student_scale, 0.0) / sum_p
        by_one = 0.0
        by_p = 0.0
        by_q = 0.0
        by_slope = 0.0
        smooth = 0.0
        if HAS_CE:
            by_one = ce_factor / sum_one
        if HAS_KD and FORM != KL:
            by_slope = tl.where(taught, kd_factor, 0.0)
            by_p -= by_slope * slopes / sum_p
        elif HAS_KD:
            by_p += kd_factor * mass / sum_p
            by_q = kd_factor * mass / sum_q
        if HAS_RANK:
            by_p -= rank_factor * rank
        if HAS_CE and not TEMPERED:
            by_p += by_one
        if SMOOTH:
            smooth = ce_factor * smoothing / tl.maximum(finite, 1.0)
        hot = ce_factor * (1 - smoothing)
        student_bits = student_scale * LOG2E
        teacher_bits = teacher_scale * LOG2E
        factors = (
            m,
            n,
            student_bits,
            teacher_bits,
            by_one,
            by_p,
            by_q,
            smooth,
            hot,
            label,
            log_p_sum,
            log_q_sum,
            beta,
            by_slope,
        )
        # A gather of another thread must not meet a gradient written over the logits.
        tl.debug_barrier()
        for start in range(0, vocabulary, BLOCK_V):
            token = start + tl.arange(0, BLOCK_V)
            inside = token < vocabulary
            at = token.to(tl.int64)
            z = tl.load(student + at * student_step, mask=inside, other=-INF).to(tl.float32)
            y = rest_score
            if HAS_KD and TEACHER == DENSE:
                y = tl.load(teacher + at * teacher_step, mask=inside, other=-INF).to(tl.float32)
            grad = gradient_at(
                token, z, y, 0.0, factors, HAS_CE, HAS_KD, SMOOTH, TEMPERED, FORM, False
            )
            tl.store(gradient + token, grad.to(gradient.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # before single ids are written over
        if HAS_CE:
            label_grad = gradient_at(
                label, z_label, y_label, 0.0, factors, HAS_CE, HAS_KD, SMOOTH, TEMPERED, FORM, True
            )
            tl.store(gradient + label, label_grad.to(gradient.dtype.element_ty), mask=known)
        if HAS_RANK or (HAS_KD and TEACHER == LISTED):
            tl.debug_barrier()
        if HAS_KD and TEACHER == LISTED:
            for first in range(0, listed, BLOCK_K):
                lane = first + tl.arange(0, BLOCK_K)
                inside_list = lane < listed
                listed_ids = tl.load(ids + lane, mask=inside_list, other=0).to(tl.int32)
                listed_y = tl.load(log_probs + lane, mask=inside_list, other=-INF)
                listed_z = tl.load(kept + lane, mask=inside_list, other=-INF)
                listed_u = tl.zeros([BLOCK_K], tl.float32)
                if HAS_RANK:
                    listed_u = rank_factor * derivative_at(
                        listed_ids, teacher_ids, by_teacher_ids, student_ids, by_student_ids, used
                    )
                if REST != SPREAD:
                    inside_list &= listed_y > -INF  # padding may repeat an id that has mass
                listed_grad = gradient_at(
                    listed_ids,
                    listed_z,
                    listed_y,
                    listed_u,
                    factors,
                    HAS_CE,
                    HAS_KD,
                    SMOOTH,
                    TEMPERED,
                    FORM,
                    True,
                )
                listed_grad = listed_grad.to(gradient.dtype.element_ty)
                tl.store(gradient + listed_ids, listed_grad, mask=inside_list)
        if HAS_RANK:
            for side in tl.static_range(2):
                ranked_ids = student_ids if side else teacher_ids
                ranked_z = z_student_ids if side else z_teacher_ids
                ranked_y = y_student_ids if side else y_teacher_ids
                ranked_u = rank_factor * derivative_at(
                    ranked_ids, teacher_ids, by_teacher_ids, student_ids, by_student_ids, used
                )
                ranked_grad = gradient_at(
                    ranked_ids,
                    ranked_z,
                    ranked_y,
                    ranked_u,
                    factors,
                    HAS_CE,
                    HAS_KD,
                    SMOOTH,
                    TEMPERED,
                    FORM,
                    True,
                )
                ranked_grad = ranked_grad.to(gradient.dtype.element_ty)
                tl.store(gradient + ranked_ids, ranked_grad, mask=used)
