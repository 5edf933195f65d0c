"""Walks over the blocks of one row that take the gradient of its mixed maps, and pass it on."""

import triton
import triton.language as tl

from fastkd_kernels.attention.mixing.divergence import (
    known_difference,
    mixture_divergence,
    whole_row,
)
from fastkd_kernels.attention.mixing.read import (
    as_operand,
    as_sums,
    both_sides,
    load_maps,
    load_weight,
)
from fastkd_kernels.attention.mixing.rounded import (
    rounded_difference,
    rounded_mixture,
    rounded_row,
)
from fastkd_kernels.attention.mixing.store import add_to_memory, store_map_gradient, weight_places
from fastkd_kernels.attention.numerics import load_statistics


@triton.jit
def asked_of_maps(
    rival,  # (BLOCK_J,)
    local,
    teacher_maps,
    high,  # keys that are walked: where there are none the row may not exist
    statistics,
    upstream,
    asked,
    TO_MAPS: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """(what gradients are multiplied by (BLOCK_J,), the statistics of the row or any numbers,
    whether a map's two bases may differ)"""
    _, _, statistic_rows, upstream_step, upstream_factor = asked
    factor = tl.full((BLOCK_J,), 1.0, tl.float32)
    mask = rival < tl.where(high > 0, teacher_maps, 0)
    if upstream is not None:
        step = upstream_step if TO_MAPS else 1
        factor = tl.load(upstream + rival * step, mask=mask, other=0.0)
        if TO_MAPS:
            factor *= upstream_factor
    known = factor, factor, factor, factor, factor
    steep = ONE_J
    if statistics is not None:
        known = load_statistics(
            statistics + rival * statistic_rows + tl.where(statistic_rows > 1, local, 0),
            teacher_maps * statistic_rows,
            mask,
        )
        if not ONE_J:  # a program that holds the weight has no register for both ways
            steep = tl.max(tl.abs(known[2] - known[0])) > 0
    return factor, known, steep


@triton.jit
def block_difference(
    goal,  # (BLOCK_K, BLOCK_J), or −goal, as `both_sides` returns them
    mixed,  # or mixed − goal
    key,
    extent,
    factor,
    known,
    steep,
    softmax,
    KNOWN: tl.constexpr,
    MIXTURE: tl.constexpr,
    EXACT: tl.constexpr,
    NVIDIA: tl.constexpr,
):
    """(dM (BLOCK_K, BLOCK_J), divergence (BLOCK_J,), 0 where statistics are known)"""
    seen, counted, _ = extent
    inverse_temperature, sharp = softmax
    divergence = tl.zeros_like(factor)
    present = (key < seen)[:, None]
    inside = (key < counted)[:, None]
    cells = counted.to(tl.float32)
    if MIXTURE and EXACT:
        difference, divergence = mixture_divergence(goal, mixed, factor)
    elif MIXTURE:
        difference, divergence = rounded_mixture(goal, mixed, factor, NVIDIA)
    elif KNOWN and EXACT:
        difference = known_difference(goal, mixed, present, known, factor, inverse_temperature)
    elif KNOWN:
        difference = rounded_difference(goal, mixed, known, steep, factor, inverse_temperature)
    elif EXACT:
        difference, divergence = whole_row(
            goal, mixed, inside, cells, factor, inverse_temperature, sharp
        )
    else:
        difference, divergence = rounded_row(
            goal, mixed, inside, cells, factor, inverse_temperature, sharp, NVIDIA
        )
    return difference, divergence


@triton.jit
def score_gradient(
    tile,  # (BLOCK_K, BLOCK_H) student's maps
    gradient,  # of them
    WHOLE: tl.constexpr,  # a block is a row, whose δ is still in the gradient
    MIXTURE: tl.constexpr,
):
    """P ∘ (dP − δ)"""
    product = tile * gradient
    if MIXTURE:
        # 0 · inf where a probability underflowed is 0: no score moves it.
        product = tl.where(tile == 0, 0.0, product)
    if WHOLE:
        product -= tl.sum(product, 0)[None, :] * tile
        if MIXTURE:
            product = tl.where(tile == 0, 0.0, product)
    return product


@triton.jit
def walk_row(
    own, other, out, out_head, out_key, weight, mixing, head, statistics, upstream, loss,
    weight_slots, loss_sum, weight_sum,
    delta,  # (BLOCK_H,)
    index, local, extent, asked, softmax,
    MEASURE: tl.constexpr,  # takes losses, δ and the gradient of the weight
    WRITE: tl.constexpr,  # writes the gradient
    LONG: tl.constexpr,
    MIXTURE: tl.constexpr,
    TO_MAPS: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    SCRATCH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,
    ONE_H: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Blocks of keys, each against all teacher maps."""
    EXACT: tl.constexpr = OPERAND == tl.float32
    KNOWN: tl.constexpr = statistics is not None
    CHANGE: tl.constexpr = MEASURE and (weight_slots is not None or (LONG and out is not None))
    student_maps, teacher_maps = own[4], other[4]
    seen, _, high = extent
    told, accumulate, _, _, _ = asked
    for first in range(0, high, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        operand = mixing
        gradient = tl.zeros((BLOCK_K, BLOCK_H), tl.float32)
        if weight is not None:
            tile = load_maps(own, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, SCRATCH)
            operand = as_operand(tile, OPERAND, PRECISION)
        for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
            rival = start + tl.arange(0, BLOCK_J)
            if not ONE_J and weight is not None:
                mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
                mixing = as_operand(mixing, OPERAND, PRECISION)
            goal, mixed = both_sides(
                own, other, operand, mixing, weight, start, key, seen, STUDENT_UNIT, TEACHER_UNIT,
                CONTIGUOUS, WIDE, SCRATCH, OPERAND, PRECISION, ONE_H, BLOCK_H, BLOCK_J, BLOCK_K,
                EXACT or MIXTURE,
            )  # fmt: skip
            factor, known, steep = asked_of_maps(
                rival, local, teacher_maps, high, statistics, upstream, asked, TO_MAPS, ONE_J,
                BLOCK_J,
            )  # fmt: skip
            difference, divergence = block_difference(
                goal, mixed, key, extent, factor, known, steep, softmax, KNOWN, MIXTURE, EXACT,
                NVIDIA,
            )  # fmt: skip
            if KNOWN and not EXACT and not SCRATCH:
                difference = tl.where((key < seen)[:, None], difference, 0.0)
            if loss is not None and not KNOWN and MEASURE:
                if ONE_J:
                    loss_sum += divergence
                else:
                    again = (index > 0) | (first > 0)
                    add_to_memory(loss + rival, divergence, rival < told, again)
            rounded = as_operand(difference, OPERAND, PRECISION)
            if weight is None and out is not None:
                store_map_gradient(
                    out, difference, rival, student_maps, key, own[3], seen, out_head, out_key,
                    STUDENT_UNIT, CONTIGUOUS, WIDE, TO_MAPS,
                )  # fmt: skip
            if weight is not None and out is not None and WRITE:
                gradient = tl.dot(rounded, mixing, gradient, input_precision=PRECISION)
            if weight is not None and CHANGE and ONE_J and not LONG:
                weight_sum = tl.dot(
                    tl.trans(rounded), operand, weight_sum, input_precision=PRECISION
                )
            elif weight is not None and CHANGE:
                change = tl.dot(tl.trans(rounded), operand, input_precision=PRECISION)
                if LONG:
                    delta += tl.sum(mixing.to(tl.float32) * change, 0)
                if weight_slots is not None and ONE_J:
                    weight_sum += change
                elif weight_slots is not None:
                    place, mask = weight_places(rival, head, teacher_maps, student_maps)
                    again = (index > 0) | (first > 0) | (accumulate != 0)
                    add_to_memory(weight_slots + place, change, mask, again)
        if weight is not None and out is not None and WRITE:
            if not TO_MAPS:
                if not ONE_J and MIXTURE:  # held through the loop it would be spilled
                    tile = load_maps(own, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, SCRATCH)
                tile = as_sums(tile, OPERAND, BLOCK_H)
                gradient = score_gradient(tile, gradient - delta[None, :], not LONG, MIXTURE)
            store_map_gradient(
                out, gradient, head, student_maps, key, own[3], seen, out_head, out_key,
                STUDENT_UNIT, CONTIGUOUS, WIDE, TO_MAPS,
            )  # fmt: skip
    return delta, loss_sum, weight_sum


@triton.jit
def walk_long_row(
    own, other, out, out_head, out_key, weight, mixing, head, statistics, upstream, loss,
    weight_slots, loss_sum, weight_sum, delta, index, local, extent, asked, softmax,
    MIXTURE: tl.constexpr,
    STUDENT_UNIT: tl.constexpr,
    TEACHER_UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,
    ONE_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Each block of teacher maps against all keys: dM, written over the teacher's maps, gives δ and
    the weight's gradient. A second walk multiplies it by the weight."""
    EXACT: tl.constexpr = OPERAND == tl.float32
    KNOWN: tl.constexpr = statistics is not None
    student_maps, teacher_maps = own[4], other[4]
    seen, _, high = extent
    told, accumulate, _, _, _ = asked
    every = tl.arange(0, BLOCK_J)
    for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
        rival = start + every
        if not ONE_J:
            mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
            mixing = as_operand(mixing, OPERAND, PRECISION)
        factor, known, steep = asked_of_maps(
            rival, local, teacher_maps, high, statistics, upstream, asked, False, ONE_J, BLOCK_J
        )
        change = tl.zeros((BLOCK_J, BLOCK_H), tl.float32)
        row_loss = tl.zeros((BLOCK_J,), tl.float32)
        for first in range(0, high, BLOCK_K):
            key = first + tl.arange(0, BLOCK_K)
            tile = load_maps(own, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, True)
            operand = as_operand(tile, OPERAND, PRECISION)
            goal, mixed = both_sides(
                own, other, operand, mixing, weight, start, key, seen, STUDENT_UNIT, TEACHER_UNIT,
                CONTIGUOUS, WIDE, True, OPERAND, PRECISION, True, BLOCK_H, BLOCK_J, BLOCK_K,
                EXACT or MIXTURE,
            )  # fmt: skip
            difference, divergence = block_difference(
                goal, mixed, key, extent, factor, known, steep, softmax, KNOWN, MIXTURE, EXACT,
                NVIDIA,
            )  # fmt: skip
            row_loss += divergence
            rounded = as_operand(difference, OPERAND, PRECISION)
            store_map_gradient(
                other[0], rounded, rival, teacher_maps, key, other[3], seen, other[1], other[2],
                TEACHER_UNIT, CONTIGUOUS, WIDE, False,
            )  # fmt: skip
            change = tl.dot(tl.trans(rounded), operand, change, input_precision=PRECISION)
        delta += tl.sum(mixing.to(tl.float32) * change, 0)
        if ONE_J:
            loss_sum += row_loss
            weight_sum += change
        elif high > 0:
            if loss is not None and not KNOWN:
                add_to_memory(loss + rival, row_loss, rival < told, index > 0)
            if weight_slots is not None:
                place, mask = weight_places(rival, head, teacher_maps, student_maps)
                again = (index > 0) | (accumulate != 0)
                add_to_memory(weight_slots + place, change, mask, again)
    tl.debug_barrier()
    for first in range(0, high, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        gradient = tl.zeros((BLOCK_K, BLOCK_H), tl.float32) - delta[None, :]
        for start in range(0, BLOCK_J if ONE_J else teacher_maps, BLOCK_J):
            rival = start + every
            if not ONE_J:
                mixing = load_weight(weight, rival, head, teacher_maps, student_maps)
                mixing = as_operand(mixing, OPERAND, PRECISION)
            tile = load_maps(other, rival, key, seen, TEACHER_UNIT, CONTIGUOUS, WIDE, True)
            gradient = tl.dot(
                as_operand(tile, OPERAND, PRECISION), mixing, gradient, input_precision=PRECISION
            )
        tile = load_maps(own, head, key, seen, STUDENT_UNIT, CONTIGUOUS, WIDE, True)
        gradient = score_gradient(as_sums(tile, OPERAND, BLOCK_H), gradient, False, MIXTURE)
        store_map_gradient(
            out, gradient, head, student_maps, key, own[3], seen, out_head, out_key, STUDENT_UNIT,
            CONTIGUOUS, WIDE, False,
        )  # fmt: skip
    return loss_sum, weight_sum
