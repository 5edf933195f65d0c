"""Dropout on a CPU: how often, how much, and what the gradient is."""

import math

import pytest
import torch

from fastkd.nn.dropout import add_dropped, dropout


@pytest.mark.parametrize("probability", [1e-3, 0.1, 0.5, 0.9, 0.99999])
def test_drops_as_often_as_asked_and_keeps_the_expectation(probability):
    torch.manual_seed(1)
    count = 1_000_003
    dropped = dropout(torch.ones(count, dtype=torch.float64), probability, training=True)
    share = (dropped == 0).double().mean().item()
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert abs(share - probability) < 5 * deviation + 2**-17
    kept = dropped[dropped != 0]
    exact = min(round(probability * 2**16), 2**16 - 1) / 2**16
    assert torch.equal(kept, torch.full_like(kept, 1 / (1 - exact), dtype=torch.float32).double())


def test_neighbours_are_independent():
    """Elements that share a random number: none of the 16 patterns of four is preferred."""
    torch.manual_seed(1)
    groups = (dropout(torch.ones(400_000, 4), 0.5, training=True) > 0).long()
    counts = torch.bincount(groups @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    chi_square = ((counts - 25_000) ** 2 / 25_000).sum().item()
    assert chi_square < 44.3  # 15 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_is_what_the_element_was_multiplied_with(dtype):
    x = torch.randn(37, 5, dtype=dtype, requires_grad=True)
    torch.manual_seed(2)
    dropped = dropout(x, 0.3, training=True)
    assert dropped.dtype == dtype
    (gradient,) = torch.autograd.grad(dropped, x, torch.ones_like(dropped))
    kept = dropped != 0
    assert 0 < kept.sum() < kept.numel()
    assert gradient.dtype == dtype
    assert torch.equal(gradient != 0, kept)
    assert torch.equal(gradient, (torch.ones_like(x) * (gradient.max() * kept)).detach())
    torch.testing.assert_close(dropped, x * gradient, atol=0, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("branch_dtype", [torch.float32, torch.bfloat16])
def test_add_dropped_is_dropout_and_addition(branch_dtype):
    x = torch.randn(11, 7, requires_grad=True)
    branch = torch.randn(11, 7, dtype=branch_dtype, requires_grad=True)
    torch.manual_seed(3)
    added = add_dropped(x, branch, 0.4, training=True)
    torch.manual_seed(3)
    expected = x + dropout(branch.float(), 0.4, training=True)
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=1e-6)
    seed = torch.randn(11, 7)
    gradients = torch.autograd.grad(added, (x, branch), seed)
    assert torch.equal(gradients[0], seed)
    assert gradients[1].dtype == branch_dtype
    (expected_gradient,) = torch.autograd.grad(expected, branch, seed)
    torch.testing.assert_close(gradients[1], expected_gradient)


def test_seed_decides():
    x = torch.ones(1000)

    def draw(seed):
        torch.manual_seed(seed)
        return dropout(x, 0.5, training=True)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_does_nothing_outside_training():
    x, branch = torch.randn(2, 3, 4)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert torch.equal(add_dropped(x, branch, 0.5, training=False), x + branch)
    assert dropout(x[:0], 0.5, training=True).shape == (0, 4)


def test_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    branch = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def function(x, branch):
        torch.manual_seed(4)
        return add_dropped(x, dropout(branch, 0.2, training=True), 0.3, training=True)

    assert torch.autograd.gradcheck(function, (x, branch))
