"""Logits as they are read: times a scale, and softly capped.

A side is a tuple of what a row's scores are read by: its logits, the step between them, the factor
of a logit and the cap.
"""

import triton
import triton.language as tl

from fastkd_kernels.tokens.row.numbers import INF, LOG2E

PLAIN = tl.constexpr(0)
SCALED = tl.constexpr(1)  # factor·z
CAPPED = tl.constexpr(2)  # cap·tanh(factor·z)


@triton.jit
def _tanh(x):
    """To a few units in the last place, near 0 too."""
    size = tl.abs(x)
    grown = tl.exp2(size * (2.0 * LOG2E))
    large = 1.0 - 2.0 / (grown + 1.0)
    square = x * x
    series = tl.fma(square, -0.00628247181687394, 0.021077757267146162)
    series = tl.fma(square, series, -0.0538538576709685)
    series = tl.fma(square, series, 0.133326016830644)
    series = tl.fma(square, series, -0.33333318045628496)
    small = tl.fma(series * square, x, x)
    return tl.where(size < 0.55, small, tl.where(x < 0, -large, large))


@triton.jit
def load_scores(side, ids, inside, SCORES: tl.constexpr):
    """Scores (N,) float32 at `ids` (N,); −inf stays −inf and stands where nothing is inside."""
    logits, step, factor, cap = side
    z = tl.load(logits + ids.to(tl.int64) * step, mask=inside, other=-INF).to(tl.float32)
    if SCORES == SCALED:
        z = z * factor
    elif SCORES == CAPPED:
        z = tl.where(z == -INF, -INF, cap * _tanh(z * factor))
    return z


@triton.jit
def score_slope(score, side, SCORES: tl.constexpr):
    """Derivative of a score above −inf by its logit."""
    _, _, factor, cap = side
    slope = factor
    if SCORES == CAPPED:
        part = score / cap
        slope = factor * cap * tl.fma(-part, part, 1.0)
    return slope
