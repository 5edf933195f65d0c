"""Arithmetic that stays accurate where two softmaxes are nearly equal.

For logits a and m, a base â of a, weights w = exp(a − â), a shift c and d = m − a − c, every
program keeps

    (â, Σw, Σw·d, Σw·(expm1(d) − d), m̂, Σexp(m − m̂), max |d|, c)

and these states merge, in a fixed order, whatever cells they were taken over. While |d| <= STEEP,
Σexp(m − â − c) = Σw + Σw·d + Σw·(expm1(d) − d), so that the sum over m needs no pass of its own.

What a gradient needs of a group are five numbers,

    softmax(a) = a_scale·exp(a − a_base)        softmax(m) = m_scale·exp(m − m_base)
    log softmax(m) − log softmax(a) = (m − m_base) − (a − a_base) − ratio

because logits less a base near the largest of them are exact, while log Σexp of exponents up to E
is off by eps·E: alike for all cells of a group, so that softmaxes taken with it do not sum to 1.
For the same reason ratio is infinite, and no softmax taken with it, where max |d| > STEEP.

The divergence alone, log1p(Σw·(expm1(d) − d)/Σw) where c is the mean of m − a under w, may be small
while some |d| is not: up to LEVEL it is taken so wherever the terms of that sum are small.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(8)  # of the state above
STATISTICS = tl.constexpr(5)  # that a gradient needs of a group
SMALLEST = tl.constexpr(2.0**-126)
STEEP = tl.constexpr(2.0)  # max |d| above which the plain logarithms of sums are used
LEVEL = tl.constexpr(16.0)  # the same of the divergence of merged states


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
    """expm1(d) − d for |d| <= LEVEL, finite above."""
    small = tl.minimum(tl.maximum(d, -1.0), 1.0)
    far = tl.exp(tl.minimum(d, LEVEL)) - 1 - d
    return tl.where(tl.abs(d) <= 1, expm1_excess(small), far)


@triton.jit
def gather(
    a,  # (J, K) teacher's logits, or (K, J) with AXIS 0
    m,  # student's logits
    counted,  # which cells are
    shift,  # (J,)
    base,  # (J,) what is subtracted from `a` in exponents
    AXIS: tl.constexpr = 1,  # of the cells
):
    """(Σw, Σw·d, Σw·(expm1(d) − d), max |d|) of one block of cells."""
    difference = tl.where(counted, m - a - tl.expand_dims(shift, AXIS), 0.0)
    weight = tl.where(counted, tl.exp(a - tl.expand_dims(base, AXIS)), 0.0)
    return (
        tl.sum(weight, AXIS),
        tl.sum(weight * difference, AXIS),
        tl.sum(weight * grown_excess(difference), AXIS),
        tl.max(tl.abs(difference), AXIS),
    )


@triton.jit
def add_exponentials(highest, total, logits, counted, AXIS: tl.constexpr = 1):
    """The running maximum and sum of exp(logits − maximum), (J,) each."""
    logits = tl.where(counted, logits, float("-inf"))
    new = tl.maximum(highest, tl.max(logits, AXIS))
    base = tl.where(new == float("-inf"), 0.0, new)
    here = tl.sum(tl.exp(logits - tl.expand_dims(base, AXIS)), AXIS)
    return new, total * tl.exp(highest - base) + here


@triton.jit
def exact_sum(x, y):
    """(x + y rounded, what rounding lost)"""
    total = x + y
    added = total - x
    return total, (x - (total - added)) + (y - added)


@triton.jit
def moved_sum(base, shift, a_sum, d_sum, e_sum):
    """(base, sum) of Σexp(m) where every |d| <= STEEP, and what rounding the base lost."""
    m_base, lost = exact_sum(base, shift)
    return m_base, (a_sum + d_sum + e_sum) * tl.exp(lost), lost


@triton.jit
def finish(a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift, level=False):
    """(a_base, a_scale, m_base, m_scale, ratio, KL), all 0 where nothing counted.

    m_max and m_sum are looked at only where max |d| > STEEP.
    level: where KL comes from the sums of d all the same
    """
    empty = a_sum == 0
    total = tl.where(empty, 1.0, a_sum)
    mean = d_sum / total
    excess = e_sum / total
    a_base = tl.where(empty, 0.0, a_max)
    near = d_most <= STEEP
    level = near | level
    m_base, moved, lost = moved_sum(a_base, shift, total, d_sum, e_sum)
    bent = log1p_excess(tl.where(level, mean + excess, 0.0))
    m_sum = tl.where(near, moved, m_sum)
    m_sum = tl.where(m_sum > 0, m_sum, 1.0)
    steep = tl.log(m_sum) - tl.log(total)
    loss = tl.where(level, excess + bent, m_max - a_base - shift + steep - mean)
    ratio = tl.where(near, mean + excess + bent + lost, float("inf"))
    m_base = tl.where(near, m_base, m_max)
    return (
        a_base,
        tl.where(empty, 0.0, 1 / total),
        tl.where(empty, 0.0, m_base),
        tl.where(empty, 0.0, 1 / m_sum),
        tl.where(empty, 0.0, ratio),
        tl.where(empty, 0.0, loss),
    )


@triton.jit
def store_statistics(place, step, a_base, a_scale, m_base, m_scale, ratio, mask):
    tl.store(place, a_base, mask=mask)
    tl.store(place + step, a_scale, mask=mask)
    tl.store(place + 2 * step, m_base, mask=mask)
    tl.store(place + 3 * step, m_scale, mask=mask)
    tl.store(place + 4 * step, ratio, mask=mask)


@triton.jit
def load_statistics(place, step, mask):
    """(a_base, a_scale, m_base, m_scale, ratio), as `store_statistics` left them."""
    return (
        tl.load(place, mask=mask, other=0.0),
        tl.load(place + step, mask=mask, other=0.0),
        tl.load(place + 2 * step, mask=mask, other=0.0),
        tl.load(place + 3 * step, mask=mask, other=0.0),
        tl.load(place + 4 * step, mask=mask, other=0.0),
    )


@triton.jit
def softmax_difference(
    a,  # (R, C)
    m,  # (R, C)
    a_base,  # (R,), as `finish` found them
    a_scale,
    m_base,
    m_scale,
    ratio,
    AXIS: tl.constexpr = 1,  # of the cells
):
    """softmax(m) − softmax(a)"""
    a -= tl.expand_dims(a_base, AXIS)
    m -= tl.expand_dims(m_base, AXIS)
    difference = m - a - tl.expand_dims(ratio, AXIS)
    weight = tl.exp(a) * tl.expand_dims(a_scale, AXIS)
    small = tl.minimum(tl.maximum(difference, -1.0), 1.0)
    near = weight * (small + expm1_excess(small))
    far = tl.exp(m) * tl.expand_dims(m_scale, AXIS) - weight
    return tl.where(tl.abs(difference) <= 1, near, far)
