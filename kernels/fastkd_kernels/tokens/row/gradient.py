"""The gradient of a row's loss: at given ids, and of the whole row."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, share_at
from fastkd_kernels.tokens.row.listed import SPREAD
from fastkd_kernels.tokens.row.rank import derivative_at
from fastkd_kernels.tokens.row.read import INF, LOG2E


@triton.jit
def gradient_at(
    token,  # (N,) ids
    z,  # (N,) student logits
    y,  # (N,) teacher scores, or one for all
    u,  # (N,) rank·u/(τ_s Σ exp((z − m)/τ_s)), or 0
    factors,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    FORM: tl.constexpr,  # of the divergence
    NVIDIA: tl.constexpr,
    TAIL: tl.constexpr,
    SINGLE: tl.constexpr,  # single ids, the target among them: the sweep over V leaves it out
):
    """ce·(p₁ − smoothed one-hot) + kd·(p·Σq − q)/τ_s + rank·p·(u − ⟨u, p⟩)/τ_s; 0 at banned ids.

    `factors` holds the shifts m and n, log₂e/τ_s, log₂e/τ_t and what multiplies exp(z − m) (unless
    τ_s = 1), exp((z − m)/τ_s) and exp((y − n)/τ_t), then the smoothing's part, the target's
    part and the target. Then of the entropy what multiplies (z − m)/τ_s in exp((z − m)/τ_s)'s
    factor, and of another divergence than KL(q ‖ p) what multiplies its share there, the difference
    of log₂ of both sums, β, and the share's product at ids of a tail.
    """
    m, n, student_bits, teacher_bits, by_one, by_p, by_q, smooth, hot, label = factors[:10]
    by_log, by_share, log_sums, beta, by_tail = factors[10:]
    centred = z - m
    student_log = centred * student_bits
    by = by_p + u
    if HAS_ENTROPY:
        by = tl.fma(student_log, by_log, by)
    if HAS_KD and TAIL and not SINGLE:
        by += by_tail
    elif HAS_KD and (TAIL or FORM != KL):
        teacher_log = (y - n) * teacher_bits
        d = student_log - teacher_log - log_sums
        share = by_share * share_at(student_log, teacher_log, d, beta, FORM, NVIDIA)
        if TAIL:
            share = tl.where(y == -INF, by_tail, share)
        by += share
    grad = tl.exp2(student_log) * by
    if HAS_KD and FORM == KL and not TAIL:
        grad -= tl.exp2((y - n) * teacher_bits) * by_q
    if HAS_CE and TEMPERED:
        grad += tl.exp2(centred * LOG2E) * by_one
    if SMOOTH:
        grad -= smooth
    if SINGLE and HAS_CE:
        grad -= tl.where(token == label, hot, 0.0)
    return tl.where(z == -INF, 0.0, grad)


@triton.jit
def write_gradient(
    gradient,  # (V,), written; may be the student's own logits
    student,
    student_step,
    teacher,
    teacher_step,
    vocabulary,
    ids,
    log_probs,
    kept,  # (K,) the student's logits at `ids`
    listed,
    rest_score,
    target,  # its logit, its teacher score, whether it is an id
    ranked,  # both lists: ids, logits, teacher scores, derivatives; their factor; lanes in use
    factors,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    FORM: tl.constexpr,
    NVIDIA: tl.constexpr,
    TAIL: tl.constexpr,
    EVERY: tl.constexpr,  # the teacher's logits are of every id
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All ids alike, then the target, the listed ones and those that are ranked, each once more."""
    dtype = gradient.dtype.element_ty
    # A gather of another thread must not meet a gradient written over the logits.
    tl.debug_barrier()
    for start in range(0, vocabulary, BLOCK_V):
        token = start + tl.arange(0, BLOCK_V)
        inside = token < vocabulary
        at = token.to(tl.int64)
        z = tl.load(student + at * student_step, mask=inside, other=-INF).to(tl.float32)
        y = rest_score
        if HAS_KD and EVERY:
            y = tl.load(teacher + at * teacher_step, mask=inside, other=-INF).to(tl.float32)
        grad = gradient_at(
            token, z, y, 0.0, factors,
            HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, False,
        )  # fmt: skip
        tl.store(gradient + token, grad.to(dtype), mask=inside)
    tl.debug_barrier()  # before single ids are written over
    if HAS_CE:
        z_label, y_label, known = target
        label = factors[9]
        label_grad = gradient_at(
            label, z_label, y_label, 0.0, factors,
            HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, True,
        )  # fmt: skip
        tl.store(gradient + label, label_grad.to(dtype), mask=known)
    if HAS_RANK or (HAS_KD and not EVERY):
        tl.debug_barrier()
    if HAS_RANK:
        teacher_ids, z_teacher_ids, y_teacher_ids, by_teacher_ids = ranked[:4]
        student_ids, z_student_ids, y_student_ids, by_student_ids = ranked[4:8]
        rank_factor, used = ranked[8:]
    if HAS_KD and not EVERY:
        for first in range(0, listed, BLOCK_K):
            lane = first + tl.arange(0, BLOCK_K)
            listed_inside = lane < listed
            listed_token = tl.load(ids + lane, mask=listed_inside, other=0).to(tl.int32)
            listed_y = tl.load(log_probs + lane, mask=listed_inside, other=-INF)
            listed_z = tl.load(kept + lane, mask=listed_inside, other=-INF)
            listed_u = tl.zeros([BLOCK_K], tl.float32)
            if HAS_RANK:
                listed_u = rank_factor * derivative_at(
                    listed_token, teacher_ids, by_teacher_ids, student_ids, by_student_ids, used
                )
            if REST != SPREAD:
                listed_inside &= listed_y > -INF  # padding may repeat an id that has mass
            listed_grad = gradient_at(
                listed_token, listed_z, listed_y, listed_u, factors,
                HAS_CE, HAS_KD, HAS_ENTROPY, SMOOTH, TEMPERED, FORM, NVIDIA, TAIL, True,
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
                ranked_u,
                factors,
                HAS_CE,
                HAS_KD,
                HAS_ENTROPY,
                SMOOTH,
                TEMPERED,
                FORM,
                NVIDIA,
                TAIL,
                True,
            )
            tl.store(gradient + ranked_token, ranked_grad.to(dtype), mask=used)
