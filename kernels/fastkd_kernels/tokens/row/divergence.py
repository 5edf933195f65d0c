"""Divergences but KL(q ‖ p), of log-probabilities in bits: values in a second read of the row."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.read import INF, LN2

KL = tl.constexpr(0)
REVERSE_KL = tl.constexpr(1)
JSD = tl.constexpr(2)
SKEW_KL = tl.constexpr(3)
SKEW_REVERSE_KL = tl.constexpr(4)
TVD = tl.constexpr(5)
# A difference of log-probabilities where one side has no mass: finite, so that times 0 it is 0.
_FAR = tl.constexpr(1e30)


@triton.jit
def _expm1(x):
    """exp(x) − 1 for x ≤ 0: near 0 as a polynomial, since the subtraction would cancel."""
    near = 1 / 720.0 + x * (1 / 5040.0 + x * (1 / 40320.0))
    near = x * (1.0 + x * (0.5 + x * (1 / 6.0 + x * (1 / 24.0 + x * (1 / 120.0 + x * near)))))
    return tl.where(x > -0.35, near, tl.exp(x) - 1.0)


@triton.jit
def _log(x):
    """log x for normal x > 0, by atanh: the library's has branches, which part lanes in a loop."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # of a mantissa in √½..√2
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    t = s * s
    series = 1.0 + t * (1 / 3.0 + t * (0.2 + t * (1 / 7.0 + t * (1 / 9.0))))
    return exponent.to(tl.float32) * LN2 + 2.0 * s * series


@triton.jit
def _log_mixture(d, beta):
    """log(β + (1 − β)·e^d) − max(d, 0): of m = βq + (1 − β)p by the larger of q and p."""
    weight = tl.where(d > 0, beta, 1.0 - beta)  # of the smaller
    larger = tl.where(d > 0, 1.0 - beta, beta)
    grown = weight * _expm1(-tl.abs(d))
    small = grown < -0.5  # there 1 + grown would lose the digits of a small β
    whole = tl.where(small, larger + weight * tl.exp(-tl.abs(d)), 1.0 + grown)
    lost = tl.where(small, 0.0, grown - (whole - 1.0))  # by rounding 1 + grown
    return _log(whole) + lost / whole


@triton.jit
def divergence_at(p_bits, q_bits, beta, FORM: tl.constexpr):
    """A term of the divergence, and p times its derivative by p; log₂ of p and q, or −inf."""
    p = tl.exp2(p_bits)
    q = tl.exp2(q_bits)
    no_p = p_bits == -INF
    no_q = q_bits == -INF
    d = (p_bits - q_bits) * LN2
    d = tl.where(no_p, tl.where(no_q, 0.0, -_FAR), tl.where(no_q, _FAR, d))
    if FORM == REVERSE_KL:
        missed = no_q & (p_bits > -INF)
        plain = p * tl.where(no_p | no_q, 0.0, d)
        term = tl.where(missed, INF, plain)
        slope = tl.where(missed, 0.0, plain + p)
    elif FORM == JSD:
        shared = _log_mixture(d, beta)
        slope = (1.0 - beta) * p * (tl.minimum(d, 0.0) - shared)
        term = slope - beta * q * (shared + tl.maximum(d, 0.0))
    elif FORM == SKEW_KL:
        of_q = -_log_mixture(d, beta) - tl.maximum(d, 0.0)  # log q − log m
        term = q * of_q
        slope = (beta - 1.0) * p * tl.exp(of_q)
    elif FORM == SKEW_REVERSE_KL:
        of_p = -_log_mixture(-d, beta) - tl.maximum(-d, 0.0)
        term = p * of_p
        slope = p * (of_p + 1.0 - beta * tl.exp(of_p))
    else:
        term = -0.5 * tl.maximum(p, q) * _expm1(-tl.abs(d))
        slope = 0.5 * p * tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    return term, slope


@triton.jit
def read_divergence(
    student,  # this row's logits
    student_stride,
    teacher,
    teacher_stride,
    vocabulary,
    shifts,  # m, n, log₂e/τ_s, log₂e/τ_t, log₂ of both sums, β
    FORM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The divergence of a row, and the sum of its slopes."""
    LANES: tl.constexpr = BLOCK_V // VECTOR
    m, n, student_bits, teacher_bits, log_p_sum, log_q_sum, beta = shifts
    value = tl.zeros([LANES], tl.float32)
    slopes = tl.zeros([LANES], tl.float32)
    for start in range(0, vocabulary, BLOCK_V):
        ids = start + tl.arange(0, BLOCK_V)
        inside = ids < vocabulary
        at = ids.to(tl.int64)
        z = tl.load(student + at * student_stride, mask=inside, other=-INF).to(tl.float32)
        y = tl.load(teacher + at * teacher_stride, mask=inside, other=-INF).to(tl.float32)
        term, slope = divergence_at(
            (z - m) * student_bits - log_p_sum, (y - n) * teacher_bits - log_q_sum, beta, FORM
        )
        value += tl.sum(tl.reshape(term, [LANES, VECTOR]), 1)
        slopes += tl.sum(tl.reshape(slope, [LANES, VECTOR]), 1)
    return tl.sum(value, 0), tl.sum(slopes, 0)
