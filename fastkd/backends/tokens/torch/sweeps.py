"""Divergences and entropy of a few finite rows, in as few sweeps over buffers as they need.

Every step writes into memory that is there, and none takes a mask or a function of more digits than
its argument has: on a CPU those cost several times what an exponential does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends.tokens.divergences import EDGE
from fastkd.backends.tokens.torch.dense_teacher import DenseRows
from fastkd.backends.tokens.torch.numerics import at_hand, log_z
from fastkd.backends.tokens.torch.scratch import Scratch
from fastkd.functional.calls import TokenOptions


class Swept(NamedTuple):
    """Components (R,), None where their weight is 0."""

    ce: Tensor | None
    kd: Tensor | None
    entropy: Tensor | None


def serves(logits: Tensor, teacher: object, options: TokenOptions) -> bool:
    """Whether all of these rows have finite logits on both sides, and a look can tell."""
    if not at_hand(logits):
        return False
    if options.kd_weight:
        if not isinstance(teacher, DenseRows) or options.form == "kl":
            return False
        mixed = options.form in ("jsd", "skew_kl", "skew_reverse_kl")
        # Weights of a mixture keep their digits in ½ ± (β − ½).
        if mixed and not EDGE <= options.skew <= 1 - EDGE:
            return False
        if not bool(teacher.logits.sum().isfinite()):
            return False
    return bool(logits.sum().isfinite())


def sweep(
    logits: Tensor,
    teacher: DenseRows | None,
    target: Tensor | None,
    options: TokenOptions,
    scratch: Scratch,
    gradient: Tensor | None,
) -> Swept:
    """logits: (R, V), kept unless `gradient` (R, V) is them; target: (R,), at temperature 1."""
    rows, columns = logits.shape
    buffers = [scratch.take(f"sweep {n}", rows, columns) for n in range(5)]
    p, weighted = buffers[0], buffers[1]
    temperature = options.student_temperature
    z = logits if temperature == 1 else torch.div(logits, temperature, out=buffers[4])
    torch.softmax(z, -1, out=p)
    peak, sums = z.amax(-1, keepdim=True), log_z(p)  # (R, 1): log Σ exp z is their sum
    ce = kd = entropy = None
    by_p: Tensor | float = 0.0  # what p is multiplied with in the gradient
    hot = -options.ce_weight * (1 - options.label_smoothing)
    goal = None if target is None else target.unsqueeze(-1)
    if goal is not None:
        ce = _cross_entropy(z, peak, sums, goal, options.label_smoothing)
        by_p = options.ce_weight
    slope, rest = None, None
    if options.entropy_weight:
        rest = torch.sub(z, peak, out=weighted).mul_(p)  # p·log p, but for a part of p
        total = rest.sum(-1, keepdim=True)
        entropy = sums - total
        by_p = by_p + options.entropy_weight / temperature * total
        rest.mul_(-options.entropy_weight / temperature)
    if options.kd_weight and teacher is not None:
        kd, slope, factor = _divergence(z, p, peak, teacher, options, buffers[2:])
        factor *= options.kd_weight / temperature
        by_p = by_p - factor * slope.sum(-1, keepdim=True)
        slope.mul_(factor)
    if gradient is not None:
        if slope is not None and rest is not None:
            slope.add_(rest)
        sweep_of = rest if slope is None else slope
        if not isinstance(by_p, Tensor):
            by_p = sums.new_full((1, 1), by_p)
        if sweep_of is None:
            torch.mul(p, by_p, out=gradient)
        else:
            torch.addcmul(sweep_of, p, by_p, out=gradient)
        if goal is not None:
            if options.label_smoothing:
                gradient.sub_(options.ce_weight * options.label_smoothing / columns)
            gradient.scatter_add_(1, goal, gradient.new_full(goal.shape, hot))
    return Swept(*(None if each is None else each.squeeze(-1) for each in (ce, kd, entropy)))


def _cross_entropy(z: Tensor, peak: Tensor, sums: Tensor, goal: Tensor, smoothing: float) -> Tensor:
    ce = (1 - smoothing) * (sums + (peak - z.gather(1, goal)))
    if smoothing:
        ce = ce + smoothing * (sums + (peak - z.mean(-1, keepdim=True)))
    return ce


def _divergence(
    z: Tensor,
    p: Tensor,
    peak: Tensor,
    teacher: DenseRows,
    options: TokenOptions,
    buffers: list[Tensor],
) -> tuple[Tensor, Tensor, float]:
    """(D, slope, factor): factor·(slope − p·Σslope) is the gradient by z; z may be buffers[2].

    All from d = log p − log q, which is exactly 0 where both logits are the same.
    """
    q, ratio, d = buffers
    y = teacher.logits
    if teacher.temperature != 1:
        y = torch.div(y, teacher.temperature, out=teacher.logits)  # a row is asked for once
    torch.softmax(y, -1, out=q)
    # Differences of what is large before differences of what is small.
    shift = (peak - y.amax(-1, keepdim=True)) + (log_z(p) - log_z(q))
    torch.sub(z, y, out=d).sub_(shift)
    form, beta = options.form, options.skew
    if form == "reverse_kl":
        slope = d.mul_(p)
        return slope.sum(-1, keepdim=True), slope, 1.0
    if form == "tvd":
        value = torch.sub(p, q, out=ratio).abs_().sum(-1, keepdim=True)
        return 0.5 * value, d.sign_().mul_(p), 0.5
    of_p = beta if form == "skew_reverse_kl" else 1 - beta
    mixture = _log_mixture(d, of_p, ratio, y)
    if form == "jsd":
        log_p = torch.clamp(d, max=0, out=y).sub_(mixture)  # log p/m
        of_q = d.clamp_(min=0).add_(mixture).mul_(q).sum(-1, keepdim=True)  # −Σ q·log q/m
        slope = log_p.mul_(p)
        return (1 - beta) * slope.sum(-1, keepdim=True) - beta * of_q, slope, 1 - beta
    if form == "skew_kl":
        log_q = torch.clamp(d, min=0, out=y).add_(mixture).neg_()  # log q/m
        value = torch.mul(log_q, q, out=ratio).sum(-1, keepdim=True)
        return value, log_q.exp_().mul_(p), beta - 1
    log_p = torch.clamp(d, max=0, out=y).sub_(mixture)
    slope = torch.exp(log_p, out=ratio).mul_(-beta).add_(log_p).mul_(p)
    return log_p.mul_(p).sum(-1, keepdim=True), slope, 1.0


def _log_mixture(d: Tensor, of_p: float, out: Tensor, spare: Tensor) -> Tensor:
    """log(of_p·p + (1 − of_p)·q) − log max(p, q): log(1 + w·(r − 1)), w the smaller one's weight
    and r its ratio to the larger one."""
    ratio = torch.abs(d, out=out).neg_().exp_()
    if of_p == 0.5:
        return ratio.add_(1).mul_(0.5).log_()
    weight = torch.sign(d, out=spare).mul_(0.5 - of_p).add_(0.5)
    return ratio.sub_(1).mul_(weight).add_(1).log_()
