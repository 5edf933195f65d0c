"""Arithmetic that stays accurate where two softmaxes are nearly equal.

For logits a and m, weights w = exp(a − max a), a shift c and d = m − a − c, every program keeps

    (max a, Σw, Σw·d, Σw·(expm1(d) − d), max m, Σexp(m − max m), max |d|, c)

and these states merge, in a fixed order, whatever cells they were taken over.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(8)
SMALLEST = tl.constexpr(2.0**-126)
STEEP = tl.constexpr(8.0)  # max |d| above which the plain logarithms of sums are used


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
def gather(
    a,  # (J, K) teacher's logits
    m,  # (J, K) student's logits
    counted,  # (J, K)
    shift,  # (J,)
):
    """The state of one block of cells, some of which may count nowhere."""
    difference = tl.where(counted, m - a - shift[:, None], 0.0)
    a = tl.where(counted, a, float("-inf"))
    m = tl.where(counted, m, float("-inf"))
    a_max = tl.max(a, 1)
    m_max = tl.max(m, 1)
    a_base = tl.where(a_max == float("-inf"), 0.0, a_max)
    m_base = tl.where(m_max == float("-inf"), 0.0, m_max)
    weight = tl.exp(a - a_base[:, None])
    grown = tl.exp(m - m_base[:, None])
    # weight · exp(d) is `grown` on another scale; above STEEP that overflows and is not used.
    scale = tl.exp(tl.minimum(m_base - a_base - shift, 2 * STEEP))
    small = tl.minimum(tl.maximum(difference, -1.0), 1.0)
    excess = tl.where(
        tl.abs(difference) <= 1,
        weight * expm1_excess(small),
        grown * scale[:, None] - weight * (1 + difference),
    )
    return (
        a_max,
        tl.sum(weight, 1),
        tl.sum(weight * difference, 1),
        tl.sum(excess, 1),
        m_max,
        tl.sum(grown, 1),
        tl.max(tl.abs(difference), 1),
    )


@triton.jit
def rescale(old, new):
    """exp(old − new), and 0 where nothing was counted yet."""
    return tl.exp(old - tl.where(new == float("-inf"), 0.0, new))


@triton.jit
def merge(
    a_max,
    a_sum,
    d_sum,
    e_sum,
    m_max,
    m_sum,
    d_most,
    a_max_2,
    a_sum_2,
    d_sum_2,
    e_sum_2,
    m_max_2,
    m_sum_2,
    d_most_2,
):
    """Two states of the same shift as one."""
    a_new = tl.maximum(a_max, a_max_2)
    m_new = tl.maximum(m_max, m_max_2)
    one = rescale(a_max, a_new)
    two = rescale(a_max_2, a_new)
    return (
        a_new,
        a_sum * one + a_sum_2 * two,
        d_sum * one + d_sum_2 * two,
        e_sum * one + e_sum_2 * two,
        m_new,
        m_sum * rescale(m_max, m_new) + m_sum_2 * rescale(m_max_2, m_new),
        tl.maximum(d_most, d_most_2),
    )


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
