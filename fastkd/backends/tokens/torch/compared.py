"""What any divergence and the entropy make of a few rows: values and gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.backends.tokens.divergences import BANNED, Divergence, divergence, entropy
from fastkd.backends.tokens.torch.dense_teacher import DenseRows
from fastkd.backends.tokens.torch.listed_teacher import ListedRows
from fastkd.functional.calls import TokenOptions


class Compared(NamedTuple):
    """Components (R,), None where their weight is 0, and the gradient of their weighted sum."""

    kd: Tensor | None
    entropy: Tensor | None
    gradient: Tensor | None  # (R, V)


def compared(
    logits: Tensor,
    teacher: DenseRows | ListedRows | None,
    options: TokenOptions,
    differentiate: bool,
) -> Compared:
    """logits: (R, V), which are kept; few enough rows that temporaries stay in a cache."""
    dead = logits.amax(-1, keepdim=True) == BANNED  # (R, 1)
    banned = logits == BANNED
    log_p = torch.log_softmax(logits.masked_fill(dead, 0) / options.student_temperature, -1)
    kd = spread = None
    gradient = None
    if options.kd_weight and teacher is not None:
        tail = isinstance(teacher, ListedRows) and teacher.kind == "tail"
        compare = _of_tail if tail else _of_all
        kd, gradient = compare(log_p, teacher, options, differentiate)
        alone = torch.inf if options.form == "kl" else 0.0
        kd = torch.where(dead.squeeze(-1) & teacher.taught(), alone, kd)
        if gradient is not None:
            gradient.mul_(options.kd_weight)
    if options.entropy_weight:
        found = entropy(log_p)
        spread = found.value.masked_fill(dead.squeeze(-1), 0)
        if differentiate:
            slope = _through_softmax(found, log_p).mul_(options.entropy_weight)
            gradient = slope if gradient is None else gradient.add_(slope)
    if gradient is not None:
        gradient.div_(options.student_temperature).masked_fill_(banned, 0)
    return Compared(kd, spread, gradient)


def _of_all(
    log_p: Tensor, teacher: DenseRows | ListedRows, options: TokenOptions, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    found = divergence(teacher.log_probs(), log_p, options.form, options.skew)
    return found.value, _through_softmax(found, log_p) if differentiate else None


def _of_tail(
    log_p: Tensor, teacher: DenseRows | ListedRows, options: TokenOptions, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    """Over the listed ids that have mass and all others as one outcome."""
    assert isinstance(teacher, ListedRows)
    ids, log_q = teacher.outcomes()  # (R, K), (R, K + 1)
    has_mass = log_q[:, :-1] > BANNED
    # Padding may repeat an id: an entry without mass writes at the likeliest one.
    best = ids.gather(1, log_q[:, :-1].argmax(-1, keepdim=True))
    others = log_p.scatter(1, torch.where(has_mass, ids, best), BANNED)  # (R, V)
    rest = others.logsumexp(-1, keepdim=True)
    listed = torch.where(has_mass, log_p.gather(1, ids), BANNED)
    found = divergence(log_q, torch.cat([listed, rest], -1), options.form, options.skew)
    value, slope = found.value, found.slope
    taught = teacher.taught()
    value, slope = value.where(taught, 0), slope.where(taught.unsqueeze(-1), 0)
    if not differentiate:
        return value, None
    share = others.sub_(rest.masked_fill(rest == BANNED, 0)).exp_()  # of an id in the rest
    gradient = share.mul_(slope[:, -1:]).sub_(log_p.exp() * slope.sum(-1, keepdim=True))
    return value, gradient.scatter_add_(1, ids, slope[:, :-1])


def _through_softmax(found: Divergence, log_p: Tensor) -> Tensor:
    return found.slope - log_p.exp() * found.slope.sum(-1, keepdim=True)
