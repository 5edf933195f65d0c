"""The divergences of two distributions, from differences of their log-probabilities.

Reference and torch compute them here: one takes its gradient by autograd, the other the slope.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BANNED = -math.inf
# A difference of log-probabilities where one side has no mass: finite, so that times 0 it is 0.
FAR = 1e30
# Of β: nearer to its ends what is small beside 1 needs care.
EDGE = 1 / 16


class Divergence(NamedTuple):
    """Of outcomes (..., V): the sum of their terms, and what its gradient is made of.

    With p = softmax(z), dvalue/dz = slope − p·Σslope.
    """

    value: Tensor  # (...)
    slope: Tensor  # (..., V): p·∂value/∂p


def divergence(log_q: Tensor, log_p: Tensor, form: str, beta: float) -> Divergence:
    """D(q, p) of log-probabilities (..., V), −inf where there is no mass; 0 without any in q.

    form, beta: `TokenOptions.form` and `.skew`
    """
    q, p = log_q.exp(), log_p.exp()
    has_mass = log_q.amax(-1) > BANNED
    if form == "kl":
        # A mass that underflows is still a mass: it makes a banned id infinite.
        mass = q.clamp(min=torch.finfo(q.dtype).tiny)
        terms = torch.where(log_q > BANNED, mass * (log_q - log_p), 0)
        return Divergence(terms.sum(-1), -q)
    far = 0.0 if form == "reverse_kl" else FAR
    d = (log_p - log_q).nan_to_num(nan=0.0, posinf=far, neginf=-far)
    terms, slope = _FORMS[form](q, p, d, beta)
    value = terms.sum(-1)
    if form == "reverse_kl":
        missed = (log_p > BANNED) & (log_q == BANNED)
        slope = slope.masked_fill(missed, 0)
        value = torch.where(missed.any(-1), math.inf, 0.0) + value
    return Divergence(value.where(has_mass, 0), slope.where(has_mass.unsqueeze(-1), 0))


def entropy(log_p: Tensor) -> Divergence:
    """−Σ p·log p."""
    bits = log_p.masked_fill(log_p == BANNED, 0)
    terms = -log_p.exp() * bits
    return Divergence(terms.sum(-1), terms - log_p.exp())


def _reverse_kl(q: Tensor, p: Tensor, d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    terms = p * d
    return terms, terms + p


def _jsd(q: Tensor, p: Tensor, d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    if beta < EDGE:
        of_p, of_q = _edge_ratios(d, beta)
    elif beta > 1 - EDGE:
        of_q, of_p = _edge_ratios(-d, 1 - beta)
    else:
        shared = _log_mixture(d, beta)
        of_p, of_q = d.clamp(max=0) - shared, -shared - d.relu()
    terms = (1 - beta) * p * of_p
    return beta * q * of_q + terms, terms


def _skew_kl(q: Tensor, p: Tensor, d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    of_q = -_log_mixture(d, beta) - d.relu()
    return q * of_q, (beta - 1) * p * of_q.exp()


def _skew_reverse_kl(q: Tensor, p: Tensor, d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    of_p = -_log_mixture(-d, beta) - (-d).relu()
    return p * of_p, p * (of_p + 1 - beta * of_p.exp())


def _tvd(q: Tensor, p: Tensor, d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    return -0.5 * torch.maximum(q, p) * torch.expm1(-d.abs()), 0.5 * p * d.sign()


_FORMS = {
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "tvd": _tvd,
}


def _edge_ratios(d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log p/m and log q/m of m = (1 − β)p + βq = p·(1 + β(q/p − 1)), for a small β.

    The first is of the size of β: as a difference of logarithms it would be lost.
    """
    d = d.clamp(min=-0.99 * math.log(torch.finfo(d.dtype).max))
    of_p = -torch.log1p(beta * torch.expm1(-d))
    return of_p, of_p - d


def _log_mixture(d: Tensor, beta: float) -> Tensor:
    """log(β + (1 − β)·e^d) − max(d, 0): of m = βq + (1 − β)p by the larger of q and p."""
    # Not |d|: at d = 0 the two halves have to have the derivative of the whole.
    x = torch.where(d > 0, -d, d)
    weight = torch.full_like(d, 1 - beta).masked_fill_(d > 0, beta)  # of the smaller
    grown = weight * torch.expm1(x)
    if EDGE <= beta <= 1 - EDGE:
        return torch.log1p(grown)
    # 1 + grown would lose the digits of a small β.
    small = grown < -0.5
    larger = torch.full_like(d, beta).masked_fill_(d > 0, 1 - beta)
    direct = torch.where(small, larger + weight * x.exp(), 1.0).log()
    return torch.where(small, direct, torch.log1p(torch.where(small, 0.0, grown)))
