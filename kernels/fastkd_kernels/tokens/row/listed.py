"""A teacher known at a few ids: its distribution, its divergence and its scores at given ids."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.read import INF, LOG2E, finite_or_zero, log_ratio_terms
from fastkd_kernels.tokens.row.topk import NO_KEY, empty_list, keys_of, merge

DROP = tl.constexpr(0)
SPREAD = tl.constexpr(1)
RENORMALIZE = tl.constexpr(2)


@triton.jit
def _listed_block(ids, log_probs, start, listed, BLOCK_K: tl.constexpr):
    """A block of one row's (id, log-probability) pairs; −inf and id 0 past the list."""
    lane = start + tl.arange(0, BLOCK_K)
    inside = lane < listed
    token = tl.load(ids + lane, mask=inside, other=0).to(tl.int32)
    score = tl.load(log_probs + lane, mask=inside, other=-INF).to(tl.float32)
    return lane, inside, token, score


@triton.jit
def read_listed(
    ids,  # this row's K ids
    log_probs,  # this row's K log-probabilities
    kept,  # this row's K student logits, written
    listed,  # K
    student,  # this row's logits
    student_stride,
    vocabulary,
    student_peak,
    student_scale,  # 1/τ_s
    teacher_scale,  # 1/τ_t
    finite,  # student logits above −inf, where spread
    total,  # Σ (z − m) over them, where spread
    REST: tl.constexpr,
    HAS_RANK: tl.constexpr,
    KEEP: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(n, Σ_v w_v, Σ_v w_v·d_v, Σq, score of an unlisted id, top-k keys), as `read_row` has them.

    w = exp((y − n)/τ_t) and d = ((y − n)/τ_t − (z − m)/τ_s)·log₂e with y the listed
    log-probability, or that of an unlisted id.
    """
    peak = -INF
    mass = 0.0
    best = empty_list(TOP_K, TOP_K_PAD)
    for start in range(0, listed, BLOCK_K):
        _, inside, token, score = _listed_block(ids, log_probs, start, listed, BLOCK_K)
        peak = tl.maximum(peak, tl.max(score, 0))
        mass += tl.sum(tl.exp2(score * LOG2E), 0)
        if HAS_RANK:
            best = merge(best, tl.where(inside, keys_of(score, token), NO_KEY))
    unlisted = (vocabulary - listed).to(tl.float32)
    rest_score = -INF
    if REST == SPREAD:
        if listed < vocabulary:
            rest_score = tl.log(tl.maximum(1.0 - mass, 0.0) / unlisted)
            mass += tl.maximum(1.0 - mass, 0.0)
        peak = tl.maximum(peak, rest_score)
    if REST == RENORMALIZE:
        mass = 1.0
    mass = tl.where(peak == -INF, 0.0, mass)

    m = finite_or_zero(student_peak)
    n = finite_or_zero(peak)
    student_bits = student_scale * LOG2E
    teacher_bits = teacher_scale * LOG2E
    weights = 0.0
    gap = 0.0
    for start in range(0, listed, BLOCK_K):
        lane, inside, token, score = _listed_block(ids, log_probs, start, listed, BLOCK_K)
        z = tl.load(student + token.to(tl.int64) * student_stride, mask=inside, other=-INF)
        z = z.to(tl.float32)
        if KEEP:
            tl.store(kept + lane, z, mask=inside)
        bits = (score - n) * teacher_bits
        weight = tl.exp2(bits)
        weights += tl.sum(weight, 0)
        gap += tl.sum(log_ratio_terms(weight, score, z, bits, (z - m) * student_bits), 0)
        if REST == SPREAD:
            finite -= tl.sum(tl.where(z == -INF, 0.0, 1.0), 0)
            total -= tl.sum(tl.where(z == -INF, 0.0, z - m), 0)
    if REST == SPREAD:
        if rest_score > -INF:
            rest_bits = (rest_score - n) * teacher_bits
            rest_weight = tl.exp2(rest_bits)
            weights += rest_weight * unlisted
            rest_gap = rest_weight * (unlisted * rest_bits - total * student_bits)
            gap += tl.where(finite < unlisted, INF, rest_gap)
    return peak, weights, gap, mass, rest_score, best


@triton.jit
def scores_at(
    wanted,  # (TOP_K_PAD,) ids
    ids,
    log_probs,
    listed,
    rest_score,
    TOP_K_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Log-probability of each wanted id, `rest_score` where it is not listed."""
    score = tl.full([TOP_K_PAD], -INF, tl.float32)
    found = tl.full([TOP_K_PAD], 0, tl.int32)
    for start in range(0, listed, BLOCK_K):
        _, inside, token, listed_score = _listed_block(ids, log_probs, start, listed, BLOCK_K)
        same = (token[None, :] == wanted[:, None]) & inside[None, :]  # (TOP_K_PAD, BLOCK_K)
        score = tl.maximum(score, tl.max(tl.where(same, listed_score[None, :], -INF), 1))
        found = tl.maximum(found, tl.max(same.to(tl.int32), 1))
    return tl.where(found > 0, score, rest_score)
