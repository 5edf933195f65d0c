"""Divergence of a block of cells and its gradient with respect to the mixed maps."""

import triton
import triton.language as tl

from fastkd_kernels.attention.numerics import (
    SMALLEST,
    STEEP,
    add_exponentials,
    finish,
    gather,
    grown_excess,
    log1p_excess,
    softmax_difference,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def short_log2(x):
    """log2(x) of normal numbers to 1e-6, in half the operations: for rounded maps."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    rest = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1  # √½ − 1 to √2 − 1
    series = 0.17162454382243622 * rest - 0.2693202915439715
    series = series * rest + 0.29569955023770117
    series = series * rest - 0.3593716377542611
    series = series * rest + 0.4806267663541977
    series = series * rest - 0.7213635760931059
    series = series * rest + 1.44269644727321
    return exponent.to(tl.float32) + series * rest


@triton.jit
def mixture_divergence(goal, mixed, factor, SHORT: tl.constexpr):
    """(factor · gradient with respect to `mixed` (K, J), KL(goal ‖ mixed) (J,)) of each row.

    Cells that are not attended to hold no mass in `goal`.
    """
    floor = tl.maximum(mixed, SMALLEST)
    ratio = goal / floor
    positive = tl.where(ratio > 0, ratio, 1.0)
    part = goal * (short_log2(positive) if SHORT else tl.log2(positive))
    divergence = tl.sum(part, 0) * LN2
    return tl.where(mixed >= SMALLEST, ratio * (-factor)[None, :], 0.0), divergence


@triton.jit
def whole_row(
    goal,  # (K, J), zeros where a query does not attend
    mixed,
    counted,  # (K, 1)
    cells,  # how many count
    factor,  # (J,)
    inverse_temperature,
    sharp,
    SHORT: tl.constexpr,
):
    """(factor/τ · (softmax(m) − softmax(a)) (K, J), KL (J,)) of a row that is held whole.

    Where |d| <= STEEP, softmax(m) − softmax(a) = w·(expm1(d) − x)/(Σw·(1 + x)), x = E_a[expm1(d)].
    """
    factor *= inverse_temperature
    if SHORT:
        shift = tl.sum(mixed - goal, 0) * (inverse_temperature / cells)
        d = (mixed - goal) * inverse_temperature - shift[None, :]
    else:
        a = goal * inverse_temperature
        d = mixed * inverse_temperature - a
        shift = tl.sum(d, 0) / cells
        d -= shift[None, :]
    if (tl.max(tl.max(tl.abs(d), 0), 0) <= STEEP) & (sharp == 0):
        weight = tl.exp2(goal * (inverse_temperature * LOG2E)) if SHORT else tl.exp(a)
        weight = tl.where(counted, weight, 0.0)
        bent = grown_excess(d, SHORT)
        total = tl.sum(weight, 0)
        excess = tl.sum(weight * bent, 0) / total
        grown = tl.sum(weight * d, 0) / total + excess
        divergence = excess + log1p_excess(grown)
        gain = factor / (total * (1 + grown))
        difference = (weight * gain[None, :]) * (d + bent - grown[None, :])
    elif SHORT:
        difference, divergence = plain_row(
            goal * inverse_temperature, mixed * inverse_temperature, counted, factor
        )
    else:
        m = mixed * inverse_temperature
        base = tl.zeros_like(shift)
        if sharp != 0:
            base = tl.max(tl.where(counted, a, float("-inf")), 0)
            base = tl.where(base == float("-inf"), 0.0, base)
        a_sum, d_sum, e_sum, d_most = gather(a, m, counted, shift, base, 0)
        highest, total = add_exponentials(
            tl.full(shift.shape, float("-inf"), tl.float32), tl.zeros_like(shift), m, counted, 0
        )
        a_base, a_scale, m_base, m_scale, ratio, divergence = finish(
            base, a_sum, d_sum, e_sum, highest, total, d_most, shift
        )
        difference = softmax_difference(a, m, a_base, a_scale, m_base, m_scale, ratio, 0)
        difference = tl.where(counted, difference * factor[None, :], 0.0)
    return difference, divergence


@triton.jit
def plain_row(a, m, counted, factor):
    """As `whole_row`, by two softmaxes: where the difference of their logits is large."""
    low = float("-inf")
    a_max = tl.max(tl.where(counted, a, low), 0)
    m_max = tl.max(tl.where(counted, m, low), 0)
    weight = tl.where(counted, tl.exp2((a - a_max[None, :]) * LOG2E), 0.0)
    a_sum = tl.sum(weight, 0)
    mean = tl.sum(weight * (m - a), 0) / a_sum
    a = weight
    m = tl.where(counted, tl.exp2((m - m_max[None, :]) * LOG2E), 0.0)
    m_sum = tl.sum(m, 0)
    divergence = m_max - a_max + tl.log(m_sum) - tl.log(a_sum) - mean
    return m * (factor / m_sum)[None, :] - a * (factor / a_sum)[None, :], divergence


@triton.jit
def known_difference(
    goal,  # (K, J)
    mixed,
    present,  # (K, 1), the cells attended to: exp of another may overflow
    known,  # (J,) each, as `finish` found them
    factor,
    inverse_temperature,
    SHORT: tl.constexpr,
):
    """factor/τ · (softmax(m) − softmax(a)), (K, J)"""
    a_base, a_scale, m_base, m_scale, ratio = known
    factor *= inverse_temperature
    if SHORT:
        # Maps rounded to 8 bits do not need the digits that the difference of the two loses.
        scale = inverse_temperature * LOG2E
        weight = tl.exp2(goal * scale - (a_base * LOG2E)[None, :]) * (a_scale * factor)[None, :]
        grown = tl.exp2(mixed * scale - (m_base * LOG2E)[None, :])
        difference = grown * (m_scale * factor)[None, :] - weight
    else:
        a = goal * inverse_temperature
        m = mixed * inverse_temperature
        difference = softmax_difference(a, m, a_base, a_scale, m_base, m_scale, ratio, 0)
        difference *= factor[None, :]
    return tl.where(present, difference, 0.0)
