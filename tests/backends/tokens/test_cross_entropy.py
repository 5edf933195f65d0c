"""Cross-entropy alone: its errors beside PyTorch's, and −inf beside the target."""

import math

import pytest
import torch
from torch.nn import functional as F

from fastkd import linear_token_distillation_loss, token_distillation_loss

# The same formula with as many roundings as in PyTorch: errors agree but for chance, which over a
# thousand values leaves room for far less than a half.
RATIO = 1.5
ROWS, WIDTH, VOCABULARY = 512, 32, 500


def rms(value):
    return value.double().square().mean().sqrt().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("sharpness", [1.0, 20.0])
def test_errors_are_those_of_pytorch(smoothing, sharpness):
    torch.manual_seed(0)
    hidden, weight = sharpness * torch.randn(ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH) / 4
    target = torch.randint(VOCABULARY, (ROWS,))

    def pytorch(dtype):
        leaves = [each.to(dtype).requires_grad_() for each in (hidden, weight)]
        loss = F.cross_entropy(
            leaves[0] @ leaves[1].T, target, reduction="none", label_smoothing=smoothing
        )
        return [loss, *torch.autograd.grad(loss.sum(), leaves)]

    def ours():
        leaves = [each.clone().requires_grad_() for each in (hidden, weight)]
        loss = linear_token_distillation_loss(
            *leaves, target=target, ce_weight=1.0, kd_weight=0.0, label_smoothing=smoothing,
            reduction="none", backend="torch",
        ).loss  # fmt: skip
        return [loss, *torch.autograd.grad(loss.sum(), leaves)]

    true = pytorch(torch.float64)
    for mine, theirs, exact in zip(ours(), pytorch(torch.float32), true, strict=True):
        assert rms(mine.detach() - exact) <= RATIO * rms(theirs.detach() - exact)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_banned_ids_beside_the_target(smoothing, weight):
    torch.manual_seed(1)
    logits = torch.randn(20, 40, dtype=torch.float64)
    logits[::2, 7] = -math.inf
    target = torch.arange(8, 28)
    results = []
    for backend in ("reference", "torch"):
        leaf = logits.clone().requires_grad_()
        losses = token_distillation_loss(
            leaf, target=target, ce_weight=weight, kd_weight=0.0, label_smoothing=smoothing,
            return_prediction=True, backend=backend,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(losses.loss, leaf)
        results.append((losses.loss.detach(), losses.prediction, gradient))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
