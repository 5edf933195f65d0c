"""A step that would leave a weight that is not finite is taken back, and no other is disturbed."""

import math

import pytest
import torch
from torch import nn

from fastkd.train.guard import StepGuard
from fastkd.train.ranks import Ranks

CPU = torch.device("cpu")


def made(scale=1.0, **options):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3) * scale), nn.Parameter(torch.randn(3) * scale)]
    parameters[1].data[0] = -math.inf  # a bias that bars an id
    return parameters, torch.optim.AdamW(parameters, betas=(0.9, 0.98), fused=True, **options)


def everything(parameters, optimizer):
    state = [optimizer.state[p].get(k) for p in parameters for k in ("exp_avg", "exp_avg_sq")]
    return [t.detach().clone() for t in (*parameters, *state) if t is not None]


def give(parameters, size):
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, size)
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))


def test_ordinary_steps_are_the_optimizers_own_and_cost_one_look(monkeypatch):
    one, other = made(lr=0.1), made(lr=0.1)
    looks, look = [], StepGuard._look
    monkeypatch.setattr(StepGuard, "_look", lambda self: (looks.append(1), look(self)))
    guard = StepGuard(one[1], Ranks(), CPU)
    for step in range(50):
        for parameters, _ in (one, other):
            norm = give(parameters, 0.1 * step)
        assert guard.step(norm)
        other[1].step()
    assert all(map(torch.equal, everything(*one), everything(*other)))
    assert len(looks) == 1


def test_nothing_is_divided_by_an_eps_that_is_zero_in_float32():
    """Where a gradient is zero, as of a piece that no batch has, its step is 0 / 0."""
    parameters, optimizer = made(lr=0.1, eps=1e-50)
    guard, before = StepGuard(optimizer, Ranks(), CPU), everything(parameters, optimizer)
    give(parameters, 1.0)
    parameters[0].grad[1] = 0
    assert not guard.step(1.0)
    assert all(map(torch.equal, everything(parameters, optimizer)[:2], before))
    give(parameters, 1.0)
    assert guard.step(1.0)


@pytest.mark.parametrize(
    ("scale", "size", "options"),
    [
        (1e30, 1.0, {"lr": 1e6, "weight_decay": 1e6}),  # decay by −1e12
        (1.0, 1e21, {"lr": 0.1}),  # squares of gradients overflow
        (3e38, 1.0, {"lr": 1e38}),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_step_that_overflows_is_taken_back(scale, size, options, begun):
    parameters, optimizer = made(scale, **options)
    guard = StepGuard(optimizer, Ranks(), CPU)
    if begun:
        rate = optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        assert guard.step(give(parameters, 1e-3))
        for group in optimizer.param_groups:
            group["lr"] = rate
    before = everything(parameters, optimizer)
    assert not guard.step(give(parameters, size))
    after = everything(parameters, optimizer)[: len(before)]
    assert all(map(torch.equal, before, after))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-3, 0.0
    assert guard.step(give(parameters, 1.0))
