"""Backends and options that every alignment test goes over, and the loss of a case."""

import pytest
import torch
from hypothesis import settings

from fastkd import attention_alignment_loss

BACKENDS = ("reference", "torch")
NORMALIZATIONS = ("map", "row", "mixture")
PADDINGS = ("exclude", "include")

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
every_padding = pytest.mark.parametrize("padding", PADDINGS)
quick = settings(max_examples=25, deadline=None)


def loss(case, backend="reference", **options):
    return attention_alignment_loss(
        *case.attention, case.weight, case.bias, backend=backend, **{**case.options, **options}
    )


def gradients(case, backend="reference", **options):
    """The sum of the loss and the gradients of everything learned."""
    tensors = [tensor.requires_grad_() for tensor in case.learned()]
    value = loss(case, backend, **options).sum()
    return value.detach(), torch.autograd.grad(value, tensors)
