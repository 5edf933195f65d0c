"""The k best of a stream in registers: pairs (score, id) as one sortable integer.

A key holds the score in its upper half and the complement of the id in its lower half, so that
the larger of two keys is the larger score or, where scores are equal, the lower id.
"""

import triton
import triton.language as tl

NO_KEY = tl.constexpr(-(2**63))
_FULL_KEY = tl.constexpr(2**63 - 1)  # fills lanes past k, never the weakest


@triton.jit
def ordered_bits(score):
    """float32 to int32 in the same order; both zeros map to 0, −inf above the lowest integer."""
    score = tl.where(score == 0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def keys_of(score, ids):
    return (ordered_bits(score).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def ids_of(keys):
    return (0x7FFFFFFF - (keys & 0xFFFFFFFF)).to(tl.int32)


@triton.jit
def scores_of(keys):
    bits = (keys >> 32).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def empty_list(TOP_K: tl.constexpr, TOP_K_PAD: tl.constexpr):
    """(TOP_K_PAD,) keys below every real one and different from one another."""
    lane = tl.arange(0, TOP_K_PAD)
    return tl.where(lane < TOP_K, lane.to(tl.int64) + NO_KEY, _FULL_KEY)


@triton.jit
def weakest_bits(best):
    return (tl.min(best, 0) >> 32).to(tl.int32)


@triton.jit
def merge(best, keys):
    """The best of `best` (TOP_K_PAD,) and `keys` (BLOCK,), unsorted; NO_KEY marks no candidate.

    Each turn moves one key, so a block costs as many turns as it has keys among the k best
    so far: k/b in the b-th block of a random row.
    """
    weakest = tl.min(best, 0)
    strongest = tl.max(keys, 0)
    while strongest > weakest:
        best = tl.where(best == weakest, strongest, best)
        weakest = tl.min(best, 0)
        strongest = tl.max(tl.where(keys < strongest, keys, NO_KEY), 0)
    return best


@triton.jit
def strongest_of(best, TOP_K: tl.constexpr, TOP_K_PAD: tl.constexpr):
    lane = tl.arange(0, TOP_K_PAD)
    return tl.max(tl.where(lane < TOP_K, best, NO_KEY), 0)
