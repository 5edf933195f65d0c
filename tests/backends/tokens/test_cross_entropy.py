"""Cross-entropy alone: its errors beside PyTorch's, and −inf beside the target."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_alone_where_probabilities_vanish(weight, reduction):
    """Targets that are banned or that no probability is left of, and a row of nothing."""
    torch.manual_seed(1)
    logits = torch.randn(6, 40, dtype=torch.float64)
    logits[0, 7], logits[1, 3], logits[2] = -math.inf, -1e4, -math.inf
    logits[3, 9] = 1e4
    for chosen in (slice(0, 2), slice(3, 6), slice(0, 6)):
        found = []
        for backend in ("reference", "torch"):
            leaf = logits[chosen].clone().requires_grad_()
            target = torch.tensor([7, 3, 1, 9, 0, 5])[chosen]
            loss = token_distillation_loss(
                leaf, target=target, ce_weight=weight, kd_weight=0.0, reduction=reduction,
                backend=backend,
            ).loss  # fmt: skip
            found.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
        torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


class Passes(TorchDispatchMode):
    """Counts operators that write or read something of at least `size` numbers; a view does not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        seen = [found, *arguments, *(named or {}).values()]
        large = any(isinstance(x, torch.Tensor) and x.numel() >= self.size for x in seen)
        self.count += large and not function.is_view and "empty" not in function.__name__
        return found


@pytest.mark.parametrize("rows", [32, 256])
def test_alone_makes_no_more_passes_than_plain_pytorch(rows):
    """But for one: a few rows are over before threads have met a few times."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, 256, requires_grad=True)
    weight, target = torch.randn(700, 256, requires_grad=True), torch.randint(700, (rows,))

    def ours():
        return linear_token_distillation_loss(
            hidden, weight, target=target, ce_weight=1.0, kd_weight=0.0, reduction="mean",
            backend="torch",
        ).loss  # fmt: skip

    def passes(loss) -> int:
        with Passes(rows * 700) as counted:
            torch.autograd.grad(loss(), (hidden, weight))
        return counted.count

    plain = passes(lambda: F.cross_entropy(hidden @ weight.T, target))
    # The largest probability, of which the log-sum is taken.
    assert passes(ours) <= plain + 1
