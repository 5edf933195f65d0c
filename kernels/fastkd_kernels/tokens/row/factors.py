"""What multiplies exponentials in the gradient of a row, from its losses and sums."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.divergence import KL, share_factor
from fastkd_kernels.tokens.row.numbers import LN2, LOG2E
from fastkd_kernels.tokens.row.read import decay


@triton.jit
def gradient_factors(
    factor,  # of the whole gradient
    weights,  # of ce, kd, rank and entropy
    rank,  # its loss, which is ⟨u, p⟩ too
    label,
    smoothing,
    student_scale,  # 1/τ_s
    shifts,  # m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    sums,  # as `row_sums` has them
    there,
    of_ce,
    slopes,  # as `divergence_of` returns them
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    FORM: tl.constexpr,
    SMOOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    TAILED: tl.constexpr,
    CUT: tl.constexpr,
):
    """As `gradient_at` and `beyond_at` take them, and the factor of the ranking's derivatives."""
    m, n, student_bits, teacher_bits, _, _, beta = shifts
    sum_p, sum_q, _, spread = sums
    _, taught, mass = there
    ce_m, ce_sum, finite, _ = of_ce
    slope, share_of_rest, log_sums = slopes
    ce_weight, kd_weight, rank_weight, entropy_weight = weights
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
    smooth = 0.0
    if HAS_CE:
        by_beyond = ce_factor / ce_sum
        by_one = by_beyond * decay(m, ce_m, LOG2E) if CUT else by_beyond
    if HAS_KD and (FORM != KL or TAILED):
        by_share = tl.where(taught, kd_factor, 0.0) * share_factor(beta, FORM) / sum_p
        by_p -= by_share * slope
        by_tail = by_share * share_of_rest
    elif HAS_KD:
        by_p += kd_factor * mass / sum_p
    if HAS_KD and FORM == KL:
        by_q = kd_factor * mass / sum_q
        if TAILED:
            by_tail = tl.where(taught, kd_factor, 0.0) * share_of_rest
    if HAS_ENTROPY:
        by_log = -factor * entropy_weight * LN2 / sum_p
        by_p -= by_log * spread / sum_p
    if HAS_RANK:
        by_p -= rank_factor * rank
    if HAS_CE and not TEMPERED:
        by_p += by_one
    if SMOOTH:
        smooth = ce_factor * smoothing / tl.maximum(finite, 1.0)
    hot = ce_factor * (1 - smoothing)
    factors = (
        m, n, student_bits, teacher_bits, by_one, by_p, by_q, smooth, hot, label,
        by_log, by_share, log_sums, beta, by_tail,
    )  # fmt: skip
    return factors, (ce_m, by_beyond, smooth), rank_factor
