"""The gradient of a row's loss: at given ids, and of the whole row."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, share_at
from fastkd_kernels.tokens.row.listed import SPREAD, listed_block
from fastkd_kernels.tokens.row.numbers import INF, LOG2E
from fastkd_kernels.tokens.row.rank import derivative_at
from fastkd_kernels.tokens.row.scores import PLAIN, load_scores, score_slope


@triton.jit
def gradient_at(
    token,  # (N,) ids
    z,  # (N,) student scores
    y,  # (N,) teacher scores, or one for all
    u,  # (N,) rank·u/(τ_s Σ exp((z − m)/τ_s)), or 0
    student,  # the row's side, see `scores`
    factors,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    FORM: tl.constexpr,  # of the divergence
    NVIDIA: tl.constexpr,
    TAIL: tl.constexpr,
    STUDENT: tl.constexpr,  # how scores are read
    SINGLE: tl.constexpr,  # single ids, the target among them: the sweep over V leaves it out
):
    """ce·(p₁ − smoothed one-hot) + kd·(p·Σq − q)/τ_s + rank·p·(u − ⟨u, p⟩)/τ_s; 0 at banned ids.

    `factors` holds the shifts m and n, log₂e/τ_s, log₂e/τ_t and what multiplies exp(z − m) (unless
    τ_s = 1), exp((z − m)/τ_s) and exp((y − n)/τ_t), then the smoothing's part, the target's
    part and the target. Then of the entropy what multiplies (z − m)/τ_s in exp((z − m)/τ_s)'s
    factor, and of another divergence than KL(q ‖ p) what multiplies its share there, the difference
    of log₂ of both sums, β, and the share's product at ids of a tail. Of KL with a tail log₂ of the
    student's sum over the tail's ids, and the teacher's mass there.
    """
    m, n, student_bits, teacher_bits, by_one, by_p, by_q, smooth, hot, label = factors[:10]
    by_log, by_share, log_sums, beta, by_tail = factors[10:]
    centred = z - m
    student_log = centred * student_bits
    by = by_p + u
    if HAS_ENTROPY:
        by = tl.fma(student_log, by_log, by)
    if HAS_KD and FORM != KL and TAIL and not SINGLE:
        by += by_tail
    elif HAS_KD and FORM != KL:
        teacher_log = (y - n) * teacher_bits
        d = student_log - teacher_log - log_sums
        share = by_share * share_at(teacher_log, d, beta, FORM, NVIDIA)
        if TAIL:
            share = tl.where(y == -INF, by_tail, share)
        by += share
    grad = tl.exp2(student_log) * by
    if HAS_KD and FORM == KL:
        of_teacher = tl.exp2((y - n) * teacher_bits) * by_q
        if TAIL:  # of it an id has its part of the student's: q/p is no float where p is small
            of_tail = tl.exp2(student_log - log_sums) * by_tail
            of_teacher = tl.where(y == -INF, of_tail, of_teacher) if SINGLE else of_tail
        grad -= of_teacher
    if HAS_CE and TEMPERED:
        grad += tl.exp2(centred * LOG2E) * by_one
    if SMOOTH:
        grad -= smooth
    if SINGLE and HAS_CE:
        grad -= tl.where(token == label, hot, 0.0)
    if STUDENT != PLAIN:
        grad *= score_slope(z, student, STUDENT)
    return tl.where(z == -INF, 0.0, grad)


@triton.jit
def beyond_at(z, student, beyond, hot, STUDENT: tl.constexpr):
    """The cross-entropy's gradient at ids that are not compared; hot: of the target, or 0."""
    m, by_one, smooth = beyond
    grad = tl.exp2((z - m) * LOG2E) * by_one - smooth - hot
    if STUDENT != PLAIN:
        grad *= score_slope(z, student, STUDENT)
    return tl.where(z == -INF, 0.0, grad)


@triton.jit
def write_beyond(
    gradient,
    student,
    first,  # id
    vocabulary,
    beyond,
    HAS_CE: tl.constexpr,
    STUDENT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Ids that only the cross-entropy knows."""
    dtype = gradient.dtype.element_ty
    for start in range(0, vocabulary - first, BLOCK_V):
        token = first + start + tl.arange(0, BLOCK_V)
        inside = token < vocabulary
        grad = tl.zeros([BLOCK_V], tl.float32)
        if HAS_CE:
            z = load_scores(student, token, inside, STUDENT)
            grad = beyond_at(z, student, beyond, 0.0, STUDENT)
        tl.store(gradient + token, grad.to(dtype), mask=inside)


@triton.jit
def write_gradient(
    gradient,  # (V,), written; may be the student's own logits
    student,  # sides, see `scores`
    teacher,
    vocabulary,
    compared,  # ids below it are those that a teacher is asked about
    given,  # its list
    kept,  # (K,) the student's scores at the list's ids
    rest_score,
    target,  # its score, its teacher score, whether it is an id
    ranked,  # see `rank_row`
    rank_factor,
    factors,
    beyond,  # of the cross-entropy at other ids: shift, what multiplies exp(z − m), smoothing
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    FORM: tl.constexpr,
    NVIDIA: tl.constexpr,
    TAIL: tl.constexpr,
    STUDENT: tl.constexpr,  # how scores are read
    TEACHER: tl.constexpr,
    CUT: tl.constexpr,  # whether other ids are there
    EVERY: tl.constexpr,  # the teacher's logits are of every id that is compared
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All ids alike, then the target, the listed ones and those that are ranked, each once more."""
    dtype = gradient.dtype.element_ty
    # A gather of another thread must not meet a gradient written over the logits.
    tl.debug_barrier()
    for start in range(0, compared, BLOCK_V):
        token = start + tl.arange(0, BLOCK_V)
        inside = token < compared
        z = load_scores(student, token, inside, STUDENT)
        y = rest_score
        if HAS_KD and EVERY:
            y = load_scores(teacher, token, inside, TEACHER)
        grad = gradient_at(
            token, z, y, 0.0, student, factors,
            HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, STUDENT, False,
        )  # fmt: skip
        tl.store(gradient + token, grad.to(dtype), mask=inside)
    if CUT:
        write_beyond(gradient, student, compared, vocabulary, beyond, HAS_CE, STUDENT, BLOCK_V)
    tl.debug_barrier()  # before single ids are written over
    if HAS_CE:
        z_label, y_label, is_id = target
        hot, label = factors[8:10]
        label_grad = gradient_at(
            label, z_label, y_label, 0.0, student, factors,
            HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, STUDENT, True,
        )  # fmt: skip
        if CUT:
            other = beyond_at(z_label, student, beyond, hot, STUDENT)
            label_grad = tl.where(label < compared, label_grad, other)
        tl.store(gradient + label, label_grad.to(dtype), mask=is_id)
    if HAS_RANK or (HAS_KD and not EVERY):
        tl.debug_barrier()
    if HAS_RANK:
        of_teacher, of_student, used = ranked
        teacher_ids, z_teacher_ids, y_teacher_ids, by_teacher_ids = of_teacher
        student_ids, z_student_ids, y_student_ids, by_student_ids = of_student
    if HAS_KD and not EVERY:
        for first in range(0, given[2], BLOCK_K):
            lane, listed_inside, listed_token, listed_y = listed_block(
                given, first, compared, BLOCK_K
            )
            listed_z = tl.load(kept + lane, mask=listed_inside, other=-INF)
            listed_u = tl.zeros([BLOCK_K], tl.float32)
            if HAS_RANK:
                listed_u = rank_factor * derivative_at(
                    listed_token, teacher_ids, by_teacher_ids, student_ids, by_student_ids, used
                )
            if REST != SPREAD:
                listed_inside &= listed_y > -INF  # padding may repeat an id that has mass
            listed_grad = gradient_at(
                listed_token, listed_z, listed_y, listed_u, student, factors,
                HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, STUDENT, True,
            )  # fmt: skip
            tl.store(gradient + listed_token, listed_grad.to(dtype), mask=listed_inside)
    if HAS_RANK:
        for side in tl.static_range(2):
            ranked_token = student_ids if side else teacher_ids
            ranked_u = rank_factor * derivative_at(
                ranked_token, teacher_ids, by_teacher_ids, student_ids, by_student_ids, used
            )
            ranked_grad = gradient_at(
                ranked_token,
                z_student_ids if side else z_teacher_ids,
                y_student_ids if side else y_teacher_ids,
                ranked_u, student, factors,
                HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, STUDENT, True,
            )  # fmt: skip
            tl.store(gradient + ranked_token, ranked_grad.to(dtype), mask=used)
