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

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def mixture_divergence(goal, mixed, factor):
    """(factor · gradient with respect to `mixed` (K, J), KL(goal ‖ mixed) (J,)) of each row.

    Cells that are not attended to hold no mass in `goal`.
    """
    floor = tl.maximum(mixed, SMALLEST)
    ratio = goal / floor
    positive = tl.where(ratio > 0, ratio, 1.0)
    part = goal * tl.log2(positive)
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
):
    """(factor/τ · (softmax(m) − softmax(a)) (K, J), KL (J,)) of a row that is held whole.

    Where |d| <= STEEP, softmax(m) − softmax(a) = w·(expm1(d) − x)/(Σw·(1 + x)), x = E_a[expm1(d)].
    """
    factor *= inverse_temperature
    a = goal * inverse_temperature
    d = mixed * inverse_temperature - a
    shift = tl.sum(d, 0) / cells
    d -= shift[None, :]
    if (tl.max(tl.max(tl.abs(d), 0), 0) <= STEEP) & (sharp == 0):
        weight = tl.where(counted, tl.exp(a), 0.0)
        bent = grown_excess(d)
        total = tl.sum(weight, 0)
        excess = tl.sum(weight * bent, 0) / total
        grown = tl.sum(weight * d, 0) / total + excess
        divergence = excess + log1p_excess(grown)
        gain = factor / (total * (1 + grown))
        difference = (weight * gain[None, :]) * (d + bent - grown[None, :])
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
def known_difference(
    goal,  # (K, J)
    mixed,
    present,  # (K, 1), the cells attended to: exp of another may overflow
    known,  # (J,) each, as `finish` found them
    factor,
    inverse_temperature,
):
    """factor/τ · (softmax(m) − softmax(a)), (K, J)"""
    a_base, a_scale, m_base, m_scale, ratio = known
    a = goal * inverse_temperature
    m = mixed * inverse_temperature
    difference = softmax_difference(a, m, a_base, a_scale, m_base, m_scale, ratio, 0)
    return tl.where(present, difference * (factor * inverse_temperature)[None, :], 0.0)
