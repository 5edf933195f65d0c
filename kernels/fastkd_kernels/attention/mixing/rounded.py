"""Divergence of maps that were rounded to 8 bits: fewer digits, in fewer operations.

A block's cells beyond those that count hold zeros on both sides: an exponential of 1 and no
difference, so that they are taken out of sums instead of out of cells.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fastkd_kernels.attention.numerics import SMALLEST, STEEP

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST = tl.constexpr(64.0)  # exponent of two
FLAT = tl.constexpr(0.125)  # max |d| up to which one exponential serves both sides


@triton.jit
def short_log2(x, NVIDIA: tl.constexpr):
    """log2 of normal numbers, to 2⁻²² where they are near 1."""
    return libdevice.fast_log2f(x) if NVIDIA else tl.log2(x)


@triton.jit
def rounded_mixture(goal, mixed, factor, NVIDIA: tl.constexpr):
    """(factor · gradient with respect to `mixed` (K, J), KL(goal ‖ mixed) (J,)) of each row."""
    floor = tl.maximum(mixed, SMALLEST)
    ratio = goal / floor
    part = goal * short_log2(tl.maximum(ratio, SMALLEST), NVIDIA)
    gradient = tl.where(floor > SMALLEST, ratio * (-factor)[None, :], 0.0)
    return gradient, tl.sum(part, 0) * LN2


@triton.jit
def rounded_row(
    negative,  # −goal (K, J), zeros where a query does not attend
    change,  # mixed − goal
    counted,  # (K, 1)
    cells,  # how many count
    factor,  # (J,)
    inverse_temperature,
    sharp,
    NVIDIA: tl.constexpr,
):
    """(factor/τ · (softmax(m) − softmax(a)) (K, J), KL (J,)) of a row that is held whole."""
    factor *= inverse_temperature
    scale = inverse_temperature * LOG2E
    most = tl.max(tl.abs(change)) * inverse_temperature
    if (most <= STEEP) & (sharp == 0):
        left = negative.shape[0] - cells
        logit = negative * -scale
        weight = tl.exp2(logit)
        total = tl.sum(weight, 0) - left
        mean = tl.sum(weight * change, 0) * (inverse_temperature / total)
        if most <= FLAT:
            # expm1(d) = d·(1 + d·(1/2 + d/6)) of d = change/τ, here by τ
            bent = change * (inverse_temperature * inverse_temperature / 6)
            bent = change * (bent + 0.5 * inverse_temperature) + 1
            bent = change * bent
            growth = tl.sum(weight * bent, 0) * (inverse_temperature / total)
            divergence = log1p_of_small(growth) - mean
            gain = factor / (total * (1 + growth))
            moved = bent * (gain * inverse_temperature)[None, :] + (-gain * growth)[None, :]
            difference = weight * moved
        else:
            grown = tl.exp2(change * scale + logit)
            grown_total = tl.sum(grown, 0) - left
            divergence = short_log2(grown_total / total, NVIDIA) * LN2 - mean
            difference = weight * (-factor / total)[None, :]
            difference += grown * (factor / grown_total)[None, :]
    else:
        difference, divergence = plain_row(-negative, change, counted, factor, inverse_temperature)
    return difference, divergence


@triton.jit
def rounded_sums(negative, change, base, inverse_temperature):
    """(Σw, Σw·d, Σw·(expm1(d) − d), max |d|), (8, J) each, of a block of cells (K, J).

    negative: −goal; change: mixed − goal; d = change/τ, without a shift
    """
    scale = inverse_temperature * LOG2E
    shift = (base * -LOG2E)[None, :]
    most = folded_most(tl.abs(change)) * inverse_temperature
    if tl.max(most) <= FLAT:
        weight = tl.exp2(negative * -scale + shift)
        part = weight * change
        bent = change * (inverse_temperature / 24) + 1 / 6
        bent = change * (bent * inverse_temperature) + 0.5
        a_sum, d_sum = folded(weight), folded(part) * inverse_temperature
        e_sum = folded(part * change * bent) * (inverse_temperature * inverse_temperature)
    else:
        logit = negative * -scale + shift
        weight = tl.exp2(logit)
        a_sum, d_sum = folded(weight), folded(weight * change) * inverse_temperature
        e_sum = folded(tl.exp2(change * scale + logit)) - a_sum - d_sum
    return a_sum, d_sum, e_sum, most


@triton.jit
def folded(tile):
    """Sums (8, J) of a tile (K, J): of what each thread holds of a product, by itself."""
    rows: tl.constexpr = tile.shape[0] // 8
    return tl.sum(tl.reshape(tile, (rows, 8, tile.shape[1])), 0)


@triton.jit
def folded_most(tile):
    rows: tl.constexpr = tile.shape[0] // 8
    return tl.max(tl.reshape(tile, (rows, 8, tile.shape[1])), 0)


@triton.jit
def log1p_of_small(x):
    """log1p(x) for |x| < 1/4."""
    z = x / (2 + x)  # log1p(x) = 2·artanh(z)
    square = z * z
    return 2 * z * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7))))


@triton.jit
def finish_rounded(base, a_sum, d_sum, e_sum, m_max, m_sum, d_most, NVIDIA: tl.constexpr):
    """As `numerics.finish`, but for the ratio, of sums without a shift."""
    empty = a_sum == 0
    total = tl.where(empty, 1.0, a_sum)
    mean = d_sum / total
    near = d_most <= STEEP
    excess = tl.where(near, e_sum, 0.0) / total
    growth = mean + excess
    m_base = tl.where(near, base, m_max)
    m_sum = tl.where(near, total + d_sum + e_sum, m_sum)
    m_sum = tl.where(m_sum > 0, m_sum, 1.0)
    z = growth / (2 + growth)
    square = z * z
    bent = 2 * square * z * (1 / 3 + square * (1 / 5 + square * (1 / 7))) - growth * z
    far = m_base - base - mean + short_log2(m_sum / total, NVIDIA) * LN2
    small = near & (tl.abs(growth) < 0.25)
    return (
        base,
        tl.where(empty, 0.0, 1 / total),
        tl.where(empty, 0.0, m_base),
        tl.where(empty, 0.0, 1 / m_sum),
        mean,
        tl.where(empty, 0.0, tl.where(small, excess + bent, far)),
    )


@triton.jit
def plain_row(goal, change, counted, factor, inverse_temperature):
    """As `rounded_row`, by two softmaxes: where the difference of their logits is large."""
    scale = inverse_temperature * LOG2E
    low = float("-inf")
    a_max = tl.max(goal, 0)  # no less than the zeros of cells that do not count
    m_max = tl.max(tl.where(counted, goal + change, low), 0)
    weight = tl.where(counted, tl.exp2((goal - a_max[None, :]) * scale), 0.0)
    a_sum = tl.sum(weight, 0)
    mean = tl.sum(weight * change, 0) / a_sum
    grown = tl.where(counted, tl.exp2((goal + change - m_max[None, :]) * scale), 0.0)
    m_sum = tl.sum(grown, 0)
    divergence = (m_max - a_max - mean) * inverse_temperature + tl.log(m_sum) - tl.log(a_sum)
    return grown * (factor / m_sum)[None, :] - weight * (factor / a_sum)[None, :], divergence


@triton.jit
def rounded_difference(
    negative,  # −goal (K, J)
    change,  # mixed − goal
    known,  # (J,) each, as `finish` found them
    steep,  # whether a map's two bases may differ
    factor,
    inverse_temperature,
):
    """factor/τ · (softmax(m) − softmax(a)), (K, J): of rounded maps without the digits that the
    difference of the two loses. Where nothing is attended to, any finite number, if a >= 0."""
    a_base, a_scale, m_base, m_scale, _ = known
    factor *= inverse_temperature
    scale = inverse_temperature * LOG2E
    logit = negative * -scale + (a_base * -LOG2E)[None, :]
    if steep:
        # What is attended to stays far below MOST; what is not may not overflow.
        apart = ((a_base - m_base) * LOG2E)[None, :]
        grown = tl.exp2(tl.minimum(change * scale + logit + apart, MOST))
    else:
        grown = tl.exp2(change * scale + logit)
    weight = tl.exp2(logit) * (-a_scale * factor)[None, :]
    return grown * (m_scale * factor)[None, :] + weight
