"""What a row's program writes of its losses, and a row that counts nothing."""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.numbers import INF


@triton.jit
def cross_entropy(target_diff, log_sum, finite, total, smoothing, SMOOTH: tl.constexpr):
    """(1 − ε)(log Σ − (z_t − m)) + ε·mean of (log Σ − (z − m)) over the finite logits."""
    ce = tl.where(smoothing < 1, (1 - smoothing) * (log_sum - target_diff), 0.0)
    ce = tl.where((smoothing < 1) & (target_diff == -INF), INF, ce)
    if SMOOTH:
        ce += tl.where(finite > 0, smoothing * (log_sum - total / tl.maximum(finite, 1.0)), 0.0)
    return ce


@triton.jit
def store_parts(parts, rows, ce, kd, rank, entropy):
    """Of one row, in a table (4, rows)."""
    tl.store(parts, ce)
    tl.store(parts + rows, kd)
    tl.store(parts + 2 * rows, rank)
    tl.store(parts + 3 * rows, entropy)


@triton.jit
def store_losses(
    loss,
    parts,
    rows,
    prediction,
    losses,  # ce, kd, rank, entropy
    first_id,  # what is predicted
    weights,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
):
    """Their weighted sum, and each; the prediction, where there is room for it."""
    ce, kd, rank, entropy = losses
    ce_weight, kd_weight, rank_weight, entropy_weight = weights
    total = 0.0
    if HAS_CE:
        total += ce_weight * ce
    if HAS_KD:
        total += kd_weight * kd
    if HAS_RANK:
        total += rank_weight * rank
    if HAS_ENTROPY:
        total += entropy_weight * entropy
    tl.store(loss, total)
    store_parts(parts, rows, ce, kd, rank, entropy)
    if prediction is not None:
        tl.store(prediction, first_id.to(tl.int64))


@triton.jit
def zero_row(
    loss,
    parts,
    rows,
    prediction,
    gradient,
    vocabulary,
    BLOCK_V: tl.constexpr,
):
    tl.store(loss, 0.0)
    store_parts(parts, rows, 0.0, 0.0, 0.0, 0.0)
    if prediction is not None:
        tl.store(prediction, 0)
    if gradient is not None:
        for start in range(0, vocabulary, BLOCK_V):
            ids = start + tl.arange(0, BLOCK_V)
            zeros = tl.zeros([BLOCK_V], gradient.dtype.element_ty)
            tl.store(gradient + ids, zeros, mask=ids < vocabulary)
