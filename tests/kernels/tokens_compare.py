"""Runs a token loss on the kernels or a backend; its errors beside those of plain PyTorch.

Truth is the reference in float64 on the same numbers. A loss may be as far from it as the reference
in the inputs' type is, twice that plus a few roundings of float32; a gradient also by one unit in
the last place of its type, because what is stored in that type is scaled afterwards.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastkd import SparseTeacher, TokenLosses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the upstream gradient: not a power of two, so that scaling rounds.
UPSTREAM = 3.0


def doubled(value):
    if isinstance(value, SparseTeacher):
        return replace(value, log_probs=value.log_probs.double())
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


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
    truth, true_gradients = run(
        loss,
        "reference",
        [x.double() for x in trained],
        *map(doubled, constants),
        **{name: doubled(value) for name, value in options.items()},
    )
    plain, plain_gradients = run(loss, "reference", trained, *constants, **options)
    ours, gradients = run(loss, backend, trained, *constants, **options)
    for name, exact, near, own in zip(TokenLosses._fields, truth, plain, ours, strict=True):
        if name == "prediction":
            assert (own is None) == (near is None)
            assert own is None or torch.equal(own, near)
            continue
        assert own.shape == near.shape and own.dtype == near.dtype
        assert_error(name, own, near, exact, 8 * torch.finfo(torch.float32).eps)
    for index, (exact, near, own) in enumerate(
        zip(true_gradients, plain_gradients, gradients, strict=True)
    ):
        assert own.shape == near.shape and own.dtype == near.dtype
        units = 8 * torch.finfo(torch.float32).eps + torch.finfo(own.dtype).eps
        assert_error(f"gradient {index}", own, near, exact, units)
    return ours


def assert_error(name: str, own: Tensor, plain: Tensor, truth: Tensor, units: float) -> None:
    special = ~torch.isfinite(truth)
    assert torch.equal(own.double()[special], truth[special]), name
    own, plain, truth = (x.double()[~special] for x in (own, plain, truth))
    if truth.numel() == 0:
        return
    bound = 2 * (plain - truth).abs().max() + units * (1 + truth.abs().max())
    error = (own - truth).abs().max()
    assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}"
