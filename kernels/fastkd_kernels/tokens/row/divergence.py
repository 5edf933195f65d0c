"""Divergences of two distributions by d = log₂ p − log₂ q, exactly 0 where p = q.

Of each two sums A and B are taken, of `terms`, from which `from_sums` has the divergence and
S = Σ_v p·share. Its derivative by a logit is factor·p·(share − S)/τ_s.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fastkd_kernels.tokens.row.numbers import INF, LN2, LOG2E
from fastkd_kernels.tokens.row.scores import load_scores

KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JSD = tl.constexpr(2)
SKEW_KL = tl.constexpr(3)
SKEW_REVERSE_KL = tl.constexpr(4)
TVD = tl.constexpr(5)
# With β near 0, and near 1, where the kernels' β is the small one: 1 − β.
JSD_LOW = tl.constexpr(6)
JSD_HIGH = tl.constexpr(7)
SKEW_KL_HIGH = tl.constexpr(8)
SKEW_REVERSE_KL_HIGH = tl.constexpr(9)
_FARTHEST = tl.constexpr(126.0)  # 2 to its power is finite


@triton.jit
def _log2(x, NVIDIA: tl.constexpr):
    """Of normal x, to 2⁻²² near 1 and exactly 0 there; the library's takes ten times as long."""
    return libdevice.fast_log2f(x) if NVIDIA else tl.log2(x)


@triton.jit
def _log_mixture(d, of_p, of_q, NVIDIA: tl.constexpr):
    """log₂(of_p·p + of_q·q) − log₂ max(p, q); 0 at d = 0, since of_p + of_q rounds to 1."""
    of_larger = tl.where(d > 0, of_p, of_q)
    of_smaller = tl.where(d > 0, of_q, of_p)
    return _log2(tl.fma(of_smaller, tl.exp2(-tl.abs(d)), of_larger), NVIDIA)


@triton.jit
def _edge_part(d, beta):
    """g = β(q/p − 1)."""
    return tl.fma(tl.exp2(-tl.maximum(d, -_FARTHEST)), beta, -beta)


@triton.jit
def _edge_share(d, beta):
    """g/(1 + g) = 1 − p/m, with the digits of a small β, and 1 where q/p is huge."""
    grown = _edge_part(d, beta)
    return grown / (1.0 + grown)


@triton.jit
def _edge_ratios(d, beta, NVIDIA: tl.constexpr):
    """log₂ p/m and log₂ q/m of m = (1 − β)p + βq = p·(1 + g), g = β(q/p − 1), for a small β.

    The first one is of the size of β, and 1 + g has lost what it is made of: so its series.
    """
    grown = _edge_part(d, beta)
    series = tl.fma(grown, 0.2 * LOG2E, -0.25 * LOG2E)
    series = tl.fma(grown, series, LOG2E / 3)
    series = tl.fma(grown, series, -0.5 * LOG2E)
    series = grown * tl.fma(grown, series, LOG2E)
    mixture = tl.where(grown < 0.0625, series, _log2(1.0 + grown, NVIDIA))
    return -mixture, -tl.maximum(d, -_FARTHEST) - mixture


@triton.jit
def _ratios(d, beta, FORM: tl.constexpr, NVIDIA: tl.constexpr):
    """log₂ p/m and log₂ q/m of the mixture m."""
    if FORM == JSD_LOW or FORM == SKEW_REVERSE_KL_HIGH:  # noqa: SIM109  (Triton has no `in`)
        by_p, by_q = _edge_ratios(d, beta, NVIDIA)
    elif FORM == JSD_HIGH or FORM == SKEW_KL_HIGH:  # noqa: SIM109
        by_q, by_p = _edge_ratios(-d, beta, NVIDIA)
    else:
        if FORM == SKEW_REVERSE_KL:
            mixture = _log_mixture(d, beta, 1.0 - beta, NVIDIA)
        else:
            mixture = _log_mixture(d, 1.0 - beta, beta, NVIDIA)
        by_p, by_q = tl.minimum(d, 0.0) - mixture, tl.minimum(-d, 0.0) - mixture
    return by_p, by_q


@triton.jit
def share_at(q_bits, d, beta, FORM: tl.constexpr, NVIDIA: tl.constexpr):
    """What p is multiplied with in the slope of an id where there is p; not of KL.

    Near 1 the skewed ones have a number for all ids taken off, which would hide what differs.
    """
    if FORM == REVERSE_KL:
        share = tl.where(q_bits == -INF, -LOG2E, d)
    elif FORM == TVD:
        share = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    else:
        by_p, by_q = _ratios(d, beta, FORM, NVIDIA)
        if FORM == SKEW_KL:
            share = tl.exp2(by_q)
        elif FORM == SKEW_KL_HIGH:
            share = -_edge_share(-d, beta)
        elif FORM == SKEW_REVERSE_KL:
            share = tl.fma(by_p, LN2, -beta * tl.exp2(by_p))
        elif FORM == SKEW_REVERSE_KL_HIGH:
            share = tl.fma(by_p, LN2, (1.0 - beta) * _edge_share(d, beta))
        else:
            share = by_p
    return share


@triton.jit
def share_factor(beta, FORM: tl.constexpr):
    factor = (1.0 - beta) * LN2
    if FORM == KL:
        factor = -1.0
    elif FORM == REVERSE_KL:
        factor = LN2
    elif FORM == JSD_HIGH:
        factor = beta * LN2
    elif FORM == SKEW_KL:
        factor = beta - 1.0
    elif FORM == SKEW_KL_HIGH:
        factor = -beta
    elif FORM == SKEW_REVERSE_KL or FORM == SKEW_REVERSE_KL_HIGH:  # noqa: SIM109
        factor = 1.0
    elif FORM == TVD:
        factor = 0.5
    return factor


@triton.jit
def terms(p_bits, q_bits, beta, FORM: tl.constexpr, NVIDIA: tl.constexpr):
    """An id's part of A and B; log₂ of p and q, or −inf.

    KL: A = Σq, B = Σ q·log₂ q/p; reverse: A = Σ p·share, B = Σ p·log₂ p/q;
    jsd: A = Σ p·log₂ p/m, B = Σ q·log₂ q/m; skewed: A = Σ p·q/m, B = Σ q·log₂ q/m, and A = Σ p²/m,
    B = Σ p·log₂ p/m, near 1 A = Σ p·(q/m − 1) and A = Σ p·(1 − p/m); tvd: A = Σ p·sign(d),
    B = Σ |p − q|
    """
    p = tl.exp2(p_bits)
    q = tl.exp2(q_bits)
    d = p_bits - q_bits
    no_p = p_bits == -INF
    no_q = q_bits == -INF
    if FORM == KL:
        a = q
        b = tl.where(no_q, 0.0, tl.where(no_p, INF, -q * d))
    elif FORM == REVERSE_KL:
        a = tl.where(no_p, 0.0, p * tl.where(no_q, -LOG2E, d))
        b = tl.where(no_p, 0.0, tl.where(no_q, INF, p * d))
    elif FORM == TVD:
        sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
        a = tl.where(no_p, 0.0, p * sign)
        b = tl.abs(p - q)
    else:
        by_p, by_q = _ratios(d, beta, FORM, NVIDIA)
        if FORM == SKEW_KL:
            a = tl.where(no_p, 0.0, p * tl.exp2(by_q))
            b = tl.where(no_q, 0.0, q * by_q)
        elif FORM == SKEW_KL_HIGH:
            a = tl.where(no_p, 0.0, -p * _edge_share(-d, beta))
            b = tl.where(no_q, 0.0, q * by_q)
        elif FORM == SKEW_REVERSE_KL:
            a = tl.where(no_p, 0.0, p * tl.exp2(by_p))
            b = tl.where(no_p, 0.0, p * by_p)
        elif FORM == SKEW_REVERSE_KL_HIGH:
            a = tl.where(no_p, 0.0, p * _edge_share(d, beta))
            b = tl.where(no_p, 0.0, p * by_p)
        else:
            a = tl.where(no_p, 0.0, p * by_p)
            b = tl.where(no_q, 0.0, q * by_q)
    return a, b


@triton.jit
def from_sums(a, b, beta, FORM: tl.constexpr):
    """The divergence, and S."""
    value = LN2 * b
    if FORM == SKEW_REVERSE_KL:
        a = value - beta * a
    elif FORM == SKEW_REVERSE_KL_HIGH:
        a = value + (1.0 - beta) * a
    elif FORM == TVD:
        value = 0.5 * b
    elif FORM == JSD_HIGH:
        value = LN2 * (beta * a + (1.0 - beta) * b)
    elif FORM == JSD or FORM == JSD_LOW:  # noqa: SIM109  (Triton has no `in`)
        value = LN2 * ((1.0 - beta) * a + beta * b)
    return value, a


@triton.jit
def read_divergence(
    student,  # this row's sides, see `scores`
    teacher,
    vocabulary,
    shifts,  # m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    FORM: tl.constexpr,
    NVIDIA: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr,
    STUDENT: tl.constexpr,  # how their scores are read
    TEACHER: tl.constexpr,
):
    """The divergence of a row, and S."""
    LANES: tl.constexpr = BLOCK_V // VECTOR
    m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta = shifts
    sum_a = tl.zeros([LANES], tl.float32)
    sum_b = tl.zeros([LANES], tl.float32)
    for start in range(0, vocabulary, BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)
        inside = ids < vocabulary
        z = load_scores(student, ids, inside, STUDENT)
        y = load_scores(teacher, ids, inside, TEACHER)
        a, b = terms(
            (z - m) * student_bits - log_p_sum,
            (y - n) * teacher_bits - log_q_sum,
            beta,
            FORM,
            NVIDIA,
        )
        sum_a += tl.sum(tl.reshape(a, [LANES, VECTOR]), 1)
        sum_b += tl.sum(tl.reshape(b, [LANES, VECTOR]), 1)
    return from_sums(tl.sum(sum_a, 0), tl.sum(sum_b, 0), beta, FORM)
