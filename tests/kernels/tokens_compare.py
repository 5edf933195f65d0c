"""Runs a token loss on the kernels or a backend; its errors beside those of plain PyTorch.

Truth is the reference in float64 on the same numbers. A loss may be as far from it as the reference
in the inputs' type is, twice that plus a few roundings of float32; a gradient also by one unit in
the last place of its type, because what is stored in that type is scaled afterwards. What a list
leaves over, 1 − Σq, is known to a few roundings of 1, and what they change may be off.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastkd import SparseTeacher, TokenLosses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the upstream gradient: not a power of two, so that scaling rounds.
UPSTREAM = 3.0
EPS = torch.finfo(torch.float32).eps


def doubled(value):
    if isinstance(value, SparseTeacher):
        return replace(value, log_probs=value.log_probs.double())
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def nudged(value):
    """A list whose probabilities, in float64, are larger by four units of float32."""
    if isinstance(value, SparseTeacher) and value.rest in ("spread", "tail"):
        return replace(value, log_probs=value.log_probs.double() + 4 * EPS)
    return doubled(value)


def run(
    loss: Callable[..., TokenLosses], backend: str, trained: list[Tensor], *constants, **options
) -> tuple[TokenLosses, list[Tensor]]:
    """The losses, and the gradients of Σ UPSTREAM·row·loss by each of `trained`."""
    leaves = [x.detach().clone().requires_grad_() for x in trained]
    losses = loss(*leaves, *constants, backend=backend, **options)
    rows = torch.arange(1, losses.loss.numel() + 1).reshape(losses.loss.shape)
    upstream = UPSTREAM * rows.to(losses.loss)
    return losses, list(torch.autograd.grad(losses.loss, leaves, upstream))


def assert_as_exact_as_reference(
    loss: Callable[..., TokenLosses],
    trained: list[Tensor],
    *constants,
    backend: str = "triton",
    **options,
) -> TokenLosses:
    """A backend's result, once it and its gradients are as close to the truth as PyTorch's."""
    exactly = [x.double() for x in trained]
    doubles = {name: doubled(value) for name, value in options.items()}
    truth, true_gradients = run(loss, "reference", exactly, *map(doubled, constants), **doubles)
    beside, gradients_beside = truth, true_gradients
    if any(isinstance(value, SparseTeacher) for value in constants):
        near = map(nudged, constants)
        beside, gradients_beside = run(loss, "reference", exactly, *near, **doubles)
    plain, plain_gradients = run(loss, "reference", trained, *constants, **options)
    ours, gradients = run(loss, backend, trained, *constants, **options)
    values = zip(TokenLosses._fields, truth, beside, plain, ours, strict=True)
    for name, exact, off, near, own in values:
        if name == "prediction":
            assert (own is None) == (near is None)
            assert own is None or torch.equal(own, near)
            continue
        assert own.shape == near.shape and own.dtype == near.dtype
        assert_error(name, own, near, exact, off, 8 * EPS)
    for index, (exact, off, near, own) in enumerate(
        zip(true_gradients, gradients_beside, plain_gradients, gradients, strict=True)
    ):
        assert own.shape == near.shape and own.dtype == near.dtype
        units = 8 * EPS + torch.finfo(own.dtype).eps
        assert_error(f"gradient {index}", own, near, exact, off, units)
    return ours


def assert_error(
    name: str, own: Tensor, plain: Tensor, truth: Tensor, beside: Tensor, units: float
) -> None:
    """beside: the truth of inputs that are a few roundings away, which allows a row no more"""
    special = ~torch.isfinite(truth)
    assert torch.equal(own.double()[special], truth[special]), name
    if special.all():
        return
    own, plain, truth, beside = (
        x.double().masked_fill(special, 0) for x in (own, plain, truth, beside)
    )
    beside = beside.where(beside.isfinite(), truth)  # nothing is left over there
    change = (beside - truth).abs()
    if truth.dim() > 1:  # of logits, by row; a loss is one for itself
        change = change.amax(-1, keepdim=True)
    bound = 2 * (plain - truth).abs().max() + change + units * (1 + truth.abs().max())
    error = (own - truth).abs()
    worst = (error - bound).argmax()
    told = error.flatten()[worst], bound.expand(error.shape).flatten()[worst]
    assert (error <= bound).all(), "{}: error {:.3g}, allowed {:.3g}".format(name, *told)
