"""The gradient of a row's loss at given ids."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, divergence_at
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
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    FORM: tl.constexpr,  # of the divergence
    SINGLE: tl.constexpr,  # single ids, the target among them: the sweep over V leaves it out
):
    """ce·(p₁ − smoothed one-hot) + kd·(p·Σq − q)/τ_s + rank·p·(u − ⟨u, p⟩)/τ_s; 0 at banned ids.

    `factors` holds the shifts m and n, log₂e/τ_s, log₂e/τ_t and what multiplies exp(z − m) (unless
    τ_s = 1), exp((z − m)/τ_s) and exp((y − n)/τ_t), then the smoothing's part, the target's
    part and the target. Then of another divergence than KL(q ‖ p) log₂ of both sums, β and what
    multiplies the slope, which takes the place of the KL's term in q.
    """
    m, n, student_bits, teacher_bits, by_one, by_p, by_q, smooth, hot, label = factors[:10]
    log_p_sum, log_q_sum, beta, by_slope = factors[10:]
    centred = z - m
    grad = tl.exp2(centred * student_bits) * (by_p + u)
    if HAS_KD and FORM != KL:
        _, slope = divergence_at(
            centred * student_bits - log_p_sum, (y - n) * teacher_bits - log_q_sum, beta, FORM
        )
        grad += by_slope * slope
    elif HAS_KD:
        grad -= tl.exp2((y - n) * teacher_bits) * by_q
    if HAS_CE and TEMPERED:
        grad += tl.exp2(centred * LOG2E) * by_one
    if SMOOTH:
        grad -= smooth
    if SINGLE and HAS_CE:
        grad -= tl.where(token == label, hot, 0.0)
    return tl.where(z == -INF, 0.0, grad)
