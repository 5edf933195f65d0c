"""Merges what programs gathered over parts of a group of cells; the second reduction."""

import triton
import triton.language as tl

from fastkd_kernels.attention.config import Launch
from fastkd_kernels.attention.numerics import (
    FIELDS,
    LEVEL,
    STATISTICS,
    STEEP,
    expm1_excess,
    finish,
    store_statistics,
)
from fastkd_kernels.common import ceil_div
from fastkd_kernels.launching import Step, step

# Mean size of the terms of Σw·(expm1(d) − d) up to which their rounding is no more than that of
# the plain logarithms of sums.
MOST_TERMS = tl.constexpr(8.0)
RUNTIME = "parts teacher_maps first_sentence".split()
MERGED = {"BLOCK_P": 32, "BLOCK_J": 16}
LAUNCH = Launch(2, fp_fusion=False)


@triton.jit(do_not_specialize=RUNTIME)
def merge_statistics_fwd(
    partials,  # (sentences, parts, FIELDS, Nt)
    statistics,  # (sentences, STATISTICS, Nt)
    loss,  # (B, Nt)
    parts,
    teacher_maps,
    first_sentence,
    BLOCK_P: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    blocks = tl.cdiv(teacher_maps, BLOCK_J)
    slot = tl.program_id(0) // blocks
    rival = (tl.program_id(0) % blocks) * BLOCK_J + tl.arange(0, BLOCK_J)
    partials += slot.to(tl.int64) * parts * FIELDS * teacher_maps

    a_max = tl.full((BLOCK_J,), float("-inf"), tl.float32)
    m_max = tl.full((BLOCK_J,), float("-inf"), tl.float32)
    a_sum = tl.zeros((BLOCK_J,), tl.float32)
    m_sum = tl.zeros((BLOCK_J,), tl.float32)
    shifted = tl.zeros((BLOCK_J,), tl.float32)  # Σ weight · (m − a)
    for start in range(0, parts, BLOCK_P):
        place, mask = part_places(start, parts, rival, teacher_maps, BLOCK_P)
        tile_max = tl.load(partials + place, mask=mask, other=float("-inf"))
        tile_sum = tl.load(partials + place + teacher_maps, mask=mask, other=0.0)
        # Where a part counted nothing, its maxima stand for nothing.
        tile_max = tl.where(tile_sum > 0, tile_max, float("-inf"))
        tile_d = tl.load(partials + place + 2 * teacher_maps, mask=mask, other=0.0)
        tile_m_max = tl.load(partials + place + 4 * teacher_maps, mask=mask, other=float("-inf"))
        tile_m = tl.load(partials + place + 5 * teacher_maps, mask=mask, other=0.0)
        tile_m_max = tl.where(tile_m > 0, tile_m_max, float("-inf"))
        tile_shift = tl.load(partials + place + 7 * teacher_maps, mask=mask, other=0.0)
        new = tl.maximum(a_max, tl.max(tile_max, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        old, here = tl.exp(a_max - base), tl.exp(tile_max - base[None, :])
        a_sum = a_sum * old + tl.sum(tile_sum * here, 0)
        shifted = shifted * old + tl.sum((tile_d + tile_shift * tile_sum) * here, 0)
        a_max = new
        new = tl.maximum(m_max, tl.max(tile_m_max, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        m_sum = m_sum * tl.exp(m_max - base) + tl.sum(
            tile_m * tl.exp(tile_m_max - base[None, :]), 0
        )
        m_max = new
    shift = shifted / tl.where(a_sum == 0, 1.0, a_sum)

    d_sum = tl.zeros((BLOCK_J,), tl.float32)
    e_sum = tl.zeros((BLOCK_J,), tl.float32)
    e_gross = tl.zeros((BLOCK_J,), tl.float32)  # of the sizes of the terms of e_sum
    d_most = tl.zeros((BLOCK_J,), tl.float32)
    base = tl.where(a_max == float("-inf"), 0.0, a_max)
    for start in range(0, parts, BLOCK_P):
        place, mask = part_places(start, parts, rival, teacher_maps, BLOCK_P)
        tile_max = tl.load(partials + place, mask=mask, other=float("-inf"))
        tile_sum = tl.load(partials + place + teacher_maps, mask=mask, other=0.0)
        tile_d = tl.load(partials + place + 2 * teacher_maps, mask=mask, other=0.0)
        tile_e = tl.load(partials + place + 3 * teacher_maps, mask=mask, other=0.0)
        tile_most = tl.load(partials + place + 6 * teacher_maps, mask=mask, other=0.0)
        tile_shift = tl.load(partials + place + 7 * teacher_maps, mask=mask, other=0.0)
        move = tl.where(tile_sum > 0, tile_shift - shift[None, :], 0.0)
        d_most = tl.maximum(d_most, tl.max(tile_most + tl.abs(move), 0))
        weight = tl.where(tile_sum > 0, tl.exp(tile_max - base[None, :]), 0.0)
        d_sum += tl.sum((tile_d + move * tile_sum) * weight, 0)
        # Beyond LEVEL the last sum is not used, and must not overflow.
        move = tl.minimum(tl.maximum(move, -LEVEL), LEVEL)
        small = tl.minimum(tl.maximum(move, -1.0), 1.0)
        bent = tl.where(tl.abs(move) <= 1, expm1_excess(small), tl.exp(move) - 1 - move)
        tile_e = tile_e * (1 + move + bent)
        tile_d = tile_d * (move + bent)
        e_sum += tl.sum((tile_e + tile_d + tile_sum * bent) * weight, 0)
        e_gross += tl.sum((tile_e + tl.abs(tile_d) + tile_sum * bent) * weight, 0)
    a_base, a_scale, m_base, m_scale, ratio, divergence = finish(
        a_max, a_sum, d_sum, e_sum, m_max, m_sum, d_most, shift,
        (d_most <= LEVEL) & (e_gross <= a_sum * MOST_TERMS),
    )  # fmt: skip
    # One base for both softmaxes where they are near: then one exponent serves both.
    move = m_base - a_base
    near = (d_most <= STEEP) & (tl.abs(move) <= STEEP)
    small = tl.minimum(tl.maximum(move, -1.0), 1.0)
    grown = tl.where(tl.abs(move) <= 1, 1 + move + expm1_excess(small), tl.exp(move))
    m_base = tl.where(near, a_base, m_base)
    m_scale = tl.where(near, m_scale / grown, m_scale)
    ratio = tl.where(near, ratio + move, ratio)
    mask = rival < teacher_maps
    statistics += slot.to(tl.int64) * STATISTICS * teacher_maps + rival
    store_statistics(statistics, teacher_maps, a_base, a_scale, m_base, m_scale, ratio, mask)
    sentence = (first_sentence + slot).to(tl.int64)
    tl.store(loss + sentence * teacher_maps + rival, divergence, mask=mask)


@triton.jit
def part_places(start, parts, rival, teacher_maps, BLOCK_P: tl.constexpr):
    part = start + tl.arange(0, BLOCK_P)
    place = part.to(tl.int64)[:, None] * FIELDS * teacher_maps + rival[None, :]
    return place, (part < parts)[:, None] & (rival < teacher_maps)[None, :]


def merge_step(sentences: int, parts: int, teacher_maps: int, first_sentence: int) -> Step:
    """From "partials" (sentences, parts, FIELDS, Nt) to "statistics" and "loss" (B, Nt)."""
    return step(
        merge_statistics_fwd,
        sentences * ceil_div(teacher_maps, MERGED["BLOCK_J"]),
        {name: name for name in ("partials", "statistics", "loss")},
        {"parts": parts, "teacher_maps": teacher_maps, "first_sentence": first_sentence},
        MERGED,
        LAUNCH.options,
    )
