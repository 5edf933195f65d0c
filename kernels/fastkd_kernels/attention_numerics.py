"""Arithmetic that stays accurate where two softmaxes are nearly equal.

For logits a and m, a base â of a, weights w = exp(a − â), a shift c and d = m − a − c, every
program keeps

    (â, Σw, Σw·d, Σw·(expm1(d) − d), m̂, Σexp(m − m̂), max |d|, c)

and these states merge, in a fixed order, whatever cells they were taken over. While |d| <= STEEP,
Σexp(m − â − c) = Σw + Σw·d + Σw·(expm1(d) − d), so that the sum over m needs no pass of its own.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(8)
SMALLEST = tl.constexpr(2.0**-126)
STEEP = tl.constexpr(2.0)  # max |d| above which the plain logarithms of sums are used


@triton.jit
def expm1_excess(d):
    """expm1(d) − d for |d| <= 1."""
    series = 1.0 / 3628800
    series = series * d + 1.0 / 362880
    series = series * d + 1.0 / 40320
    series = series * d + 1.0 / 5040
    series = series * d + 1.0 / 720
    series = series * d + 1.0 / 120
    series = series * d + 1.0 / 24
    series = series * d + 1.0 / 6
    series = series * d + 0.5
    return series * d * d


@triton.jit
def log1p_excess(x):
    """log1p(x) − x for x > −1."""
    z = x / (2 + x)  # log1p(x) = 2·artanh(z), x = 2·z + x·z
    square = z * z
    series = 1.0 / 13
    series = series * square + 1.0 / 11
    series = series * square + 1.0 / 9
    series = series * square + 1.0 / 7
    series = series * square + 1.0 / 5
    series = series * square + 1.0 / 3
    near = 2 * series * square * z - x * z
    far = tl.log(tl.maximum(1 + x, SMALLEST)) - x
    return tl.where(tl.abs(x) < 0.25, near, far)


@triton.jit
def grown_excess(d):
    """expm1(d) − d, for d up to STEEP."""
    small = tl.minimum(tl.maximum(d, -1.0), 1.0)
    far = tl.exp(tl.minimum(d, 2 * STEEP)) - 1 - d
    return tl.where(tl.abs(d) <= 1, expm1_excess(small), far)


@triton.jit
def gather(
    a,  # (J, K) teacher's logits
    m,  # (J, K) student's logits
    counted,  # (J, K)
    shift,  # (J,)
    base,  # (J,) what is subtracted from `a` in exponents
):
    """(Σw, Σw·d, Σw·(expm1(d) − d), max |d|) of one block of cells."""
    difference = tl.where(counted, m - a - shift[:, None], 0.0)
    weight = tl.where(counted, tl.exp(a - base[:, None]), 0.0)
    return (
        tl.sum(weight, 1),
        tl.sum(weight * difference, 1),
        tl.sum(weight * grown_excess(difference), 1),
        tl.max(tl.abs(difference), 1),
    )


@triton.jit
def add_exponentials(highest, total, logits, counted):
    """The running maximum and sum of exp(logits − maximum), (J,) each."""
    logits = tl.where(counted, logits, float("-inf"))
    new = tl.maximum(highest, tl.max(logits, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    total = total * tl.exp(highest - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
    return new, total


@triton.jit
def finish(a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift):
    """(log Σexp(a), log Σexp(m) − log Σexp(a), KL), all 0 where nothing counted."""
    empty = a_sum == 0
    total = tl.where(empty, 1.0, a_sum)
    mean = d_sum / total
    excess = e_sum / total
    a_log = tl.where(empty, 0.0, a_max + tl.log(total))
    m_log = tl.where(empty, 0.0, m_max + tl.log(tl.where(m_sum == 0, 1.0, m_sum)))
    near = d_most <= STEEP
    bent = log1p_excess(tl.where(near, mean + excess, 0.0))
    ratio = tl.where(near, shift + mean + excess + bent, m_log - a_log)
    loss = tl.where(near, excess + bent, m_log - a_log - shift - mean)
    return a_log, tl.where(empty, 0.0, ratio), tl.where(empty, 0.0, loss)


@triton.jit
def softmax_difference(a, m, a_log, ratio):
    """softmax(m) − softmax(a), given log Σexp(a) and log Σexp(m) − log Σexp(a)."""
    difference = m - a - ratio
    weight = tl.exp(a - a_log)
    small = tl.minimum(tl.maximum(difference, -1.0), 1.0)
    near = weight * (small + expm1_excess(small))
    far = tl.exp(m - a_log - ratio) - weight
    return tl.where(tl.abs(difference) <= 1, near, far)
