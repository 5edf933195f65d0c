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
FLAT = tl.constexpr(0.125)  # max |d| up to which one exponential serves both sides


@triton.jit
def short_log2(x, NVIDIA: tl.constexpr):
    """log2 of normal numbers, to 2⁻²² where they are near 1."""
    return libdevice.fast_log2f(x) if NVIDIA else tl.log2(x)


@triton.jit
def rounded_mixture(goal, mixed, factor, NVIDIA: tl.constexpr):
    """(factor · gradient with respect to `mixed` (K, J), KL(goal ‖ mixed) (J,)) of each row."""
    ratio = goal / tl.maximum(mixed, SMALLEST)
    part = goal * short_log2(tl.maximum(ratio, SMALLEST), NVIDIA)
    gradient = tl.where(mixed >= SMALLEST, ratio * (-factor)[None, :], 0.0)
    return gradient, tl.sum(part, 0) * LN2


@triton.jit
def rounded_row(
    goal,  # (K, J), zeros where a query does not attend
    mixed,
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
    change = mixed - goal
    most = tl.max(tl.abs(change)) * inverse_temperature
    if (most <= STEEP) & (sharp == 0):
        left = goal.shape[0] - cells
        weight = tl.exp2(goal * scale)
        total = tl.sum(weight, 0) - left
        if most <= FLAT:
            d = change * inverse_temperature
            part = weight * d
            moved = part * (1 + d * (0.5 + d * (1 / 6)))  # weight · expm1(d)
            mean = tl.sum(part, 0) / total
            growth = tl.sum(moved, 0) / total
            divergence = log1p_of_small(growth) - mean
            gain = factor / (total * (1 + growth))
            difference = moved * gain[None, :] - weight * (gain * growth)[None, :]
        else:
            grown = tl.exp2(goal * scale + change * scale)
            grown_total = tl.sum(grown, 0) - left
            mean = tl.sum(weight * change, 0) * (inverse_temperature / total)
            divergence = short_log2(grown_total / total, NVIDIA) * LN2 - mean
            difference = grown * (factor / grown_total)[None, :]
            difference -= weight * (factor / total)[None, :]
    else:
        difference, divergence = plain_row(goal, change, counted, factor, inverse_temperature)
    return difference, divergence


@triton.jit
def bent_over_square(d):
    """(expm1(d) − d)/d² for |d| <= STEEP, to 1e-5 of itself."""
    series = 2.5420370133231224e-05 * d + 0.00021800534315776564
    series = series * d + 0.0013929668413416503
    series = series * d + 0.008295354943706701
    series = series * d + 0.041656943678055246
    series = series * d + 0.166684356418866
    return series * d + 0.5000024290637408


@triton.jit
def rounded_terms(goal, mixed, base, inverse_temperature):
    """(w, w·d, w·(expm1(d) − d), |d|) of each cell, (K, J); d without a shift."""
    d = (mixed - goal) * inverse_temperature
    weight = tl.exp2(goal * (inverse_temperature * LOG2E) - (base * LOG2E)[None, :])
    part = weight * d
    return weight, part, part * d * bent_over_square(d), tl.abs(d)


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
    goal,  # (K, J)
    mixed,
    present,  # (K, 1), the cells attended to: exp of another may overflow
    known,  # (J,) each, as `finish` found them
    factor,
    inverse_temperature,
):
    """factor/τ · (softmax(m) − softmax(a)), (K, J): of rounded maps without the digits that the
    difference of the two loses."""
    a_base, a_scale, m_base, m_scale, _ = known
    factor *= inverse_temperature
    scale = inverse_temperature * LOG2E
    weight = tl.exp2(goal * scale - (a_base * LOG2E)[None, :]) * (a_scale * factor)[None, :]
    grown = tl.exp2(mixed * scale - (m_base * LOG2E)[None, :])
    return tl.where(present, grown * (m_scale * factor)[None, :] - weight, 0.0)
