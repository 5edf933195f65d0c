"""Gradients of the alignment losses against differences and derivations."""

import itertools

import pytest
import torch

from fastkd import alignment_loss_from_maps, attention_alignment_loss
from tests.functional.attention_backends import (
    NORMALIZATIONS,
    every_backend,
    every_normalization,
    every_padding,
    gradients,
    loss,
)
from tests.functional.attention_literal import case, literal, maps


@every_backend
@every_padding
@every_normalization
def test_gradients(backend, padding, normalization):
    for causal, mix in itertools.product([False, True], [False, True]):
        tried = case(
            batch=2,
            student=(4, 2) if mix else (2, 1),
            teacher=(2, 2),
            queries=3,
            keys=4,
            mix=mix,
            bias=mix and normalization != "mixture",
            causal=causal,
            normalization=normalization,
            padding=padding,
            temperature=1.0 if normalization == "mixture" else 0.5,
        )
        count = len(tried.learned())

        def function(query, key, *parameters, tried=tried, count=count):
            weight = parameters[0] if count > 2 else None
            bias = parameters[1] if count > 3 else None
            return attention_alignment_loss(
                query,
                key,
                *tried.attention[2:],
                weight,
                bias,
                reduction="none",
                backend=backend,
                **tried.options,
            )

        inputs = [tensor.requires_grad_() for tensor in tried.learned()]
        assert torch.autograd.gradcheck(function, inputs)


@every_backend
@every_padding
@every_normalization
def test_gradients_of_maps(backend, padding, normalization):
    tried = case(batch=2, queries=3, keys=3, normalization=normalization, padding=padding)
    student, teacher = maps(tried)

    def function(student, weight):
        return alignment_loss_from_maps(
            student, teacher, weight, reduction="none", backend=backend, **tried.options
        )

    inputs = student.requires_grad_(), tried.weight.requires_grad_()
    assert torch.autograd.gradcheck(function, inputs)


@every_backend
@every_normalization
def test_bias_has_zero_gradient(backend, normalization):
    if normalization == "mixture":
        return
    tried = case(bias=True, normalization=normalization)
    *_, gradient = gradients(tried, backend)[1]
    assert gradient.eq(0).all()


@every_backend
@every_normalization
def test_upstream_gradient_scales_gradients(backend, normalization):
    tried = case(normalization=normalization)
    tensors = [tensor.requires_grad_() for tensor in tried.learned()]
    once = torch.autograd.grad(loss(tried, backend), tensors)
    thrice = torch.autograd.grad(3 * loss(tried, backend), tensors)
    mean = torch.autograd.grad(loss(tried, backend, reduction="mean"), tensors)
    for one, three, average in zip(once, thrice, mean, strict=True):
        torch.testing.assert_close(three, 3 * one)
        torch.testing.assert_close(average, one / 3)


@every_backend
@every_normalization
def test_upstream_gradient_of_each_map(backend, normalization):
    tried = case(normalization=normalization)
    tensors = [tensor.requires_grad_() for tensor in tried.learned()]
    upstream = torch.randn(3, 3, dtype=torch.float64)
    found = torch.autograd.grad(loss(tried, backend, reduction="none"), tensors, upstream)
    expected = torch.autograd.grad((literal(tried) * upstream).sum(), tensors)
    torch.testing.assert_close(found, expected)


@every_backend
@every_normalization
@pytest.mark.parametrize("frozen", ["weight", "queries", "keys", "all"])
def test_frozen_parts_get_no_gradient(backend, normalization, frozen):
    tried = case(normalization=normalization)
    full = gradients(tried.to(torch.float64), backend)[1]
    names = ["queries", "keys", "weight"]
    tensors = dict(zip(names, tried.learned(), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(frozen not in ("all", name))
    value = loss(tried, backend)
    if frozen == "all":
        assert not value.requires_grad
        return
    value.backward()
    for name, expected in zip(names, full, strict=True):
        if name == frozen:
            assert tensors[name].grad is None
        else:
            torch.testing.assert_close(tensors[name].grad, expected)


@every_backend
def test_probability_below_the_smallest_has_no_gradient(backend):
    student = torch.tensor([[1.0, 2.0**-130]]).double()[None, None].requires_grad_()
    teacher = torch.tensor([[0.5, 0.5]]).double()[None, None]
    value = alignment_loss_from_maps(student, teacher, normalization="mixture", backend=backend)
    (gradient,) = torch.autograd.grad(value, student)
    expected = -torch.tensor(2.0).double().log() + 0.5 * 126 * torch.tensor(2.0).double().log()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient.flatten().tolist(), [-0.5, 0.0])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_reference_has_second_order_gradients(normalization):
    tried = case(batch=1, queries=2, keys=3, normalization=normalization, lengths=False)

    def function(query, weight):
        return attention_alignment_loss(
            query,
            *tried.attention[1:],
            weight,
            backend="reference",
            **tried.options,
        )

    inputs = tried.student_query.requires_grad_(), tried.weight.requires_grad_()
    assert torch.autograd.gradgradcheck(function, inputs)
