"""Alignment losses in low precision, and where softmaxes are steep or nearly equal."""

import pytest
import torch

from tests.functional.attention_backends import every_backend, every_normalization, gradients, loss
from tests.functional.attention_literal import case, literal


@every_backend
@every_normalization
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_that_of_the_rounded_inputs(backend, normalization, dtype):
    # Scores are taken in float32 from the inputs as they are, so what remains is float32 rounding,
    # a few times that of the formulas in float32, and the gradients' rounding to their own dtype.
    tried = case(dtype=dtype, normalization=normalization)
    exact_value, exact = gradients(tried.to(torch.float64), "reference")
    plain = tried.to(torch.float32)
    plain_value = literal(plain).sum()
    tensors = [tensor.requires_grad_() for tensor in plain.learned()]
    plain_gradients = torch.autograd.grad(literal(plain).sum(), tensors)
    value, found = gradients(tried, backend)
    assert value.dtype == torch.float32
    rounding = torch.finfo(torch.float32).eps
    assert abs(value - exact_value) <= 2 * abs(plain_value - exact_value) + 8 * rounding * value
    for tensor, gradient, plain, truth in zip(
        tried.learned(), found, plain_gradients, exact, strict=True
    ):
        assert gradient.dtype == tensor.dtype
        inside = 2 * (plain - truth).abs().max() + 8 * rounding * truth.abs().max()
        outside = 0.0
        if dtype != torch.float32:
            kind = torch.finfo(dtype)
            outside = kind.eps / 2 * truth.abs() + kind.smallest_normal * kind.eps
        assert ((gradient.double() - truth).abs() <= inside + outside).all()


@every_backend
@every_normalization
def test_autocast_rounds_operands_only(backend, normalization):
    tried = case(dtype=torch.float32, normalization=normalization)
    rounded = tried.to(torch.float32)
    for name in ("student_query", "student_key", "teacher_query", "teacher_key"):
        setattr(rounded, name, getattr(rounded, name).bfloat16().float())
    expected_value, expected = gradients(rounded, backend)
    tensors = [tensor.requires_grad_() for tensor in tried.learned()]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(tried, backend)
    found = torch.autograd.grad(value, tensors)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), expected_value)
    for gradient, truth in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32
        tolerance = torch.finfo(torch.bfloat16).eps / 2
        torch.testing.assert_close(gradient, truth, rtol=tolerance, atol=1e-6)


@every_backend
def test_mixed_precision_of_student_and_teacher(backend):
    tried = case(dtype=torch.float32)
    tried.teacher_query, tried.teacher_key = (t.bfloat16() for t in tried.attention[2:])
    tried.weight = tried.weight.bfloat16()
    value, found = gradients(tried, backend)
    exact, _ = gradients(tried.to(torch.float64), "reference")
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    assert [gradient.dtype for gradient in found] == [torch.float32] * 2 + [torch.bfloat16]


@every_backend
@pytest.mark.parametrize(("length", "sharp"), [(256, 1.0), (1024, 1.0), (2048, 1.0), (2048, 4.0)])
def test_small_divergence_of_large_maps(backend, length, sharp):
    # Both softmaxes are all but uniform here: the usual form in float32 is off by up to 1,000 times
    # the loss. The weights let single cells differ by more than 1.
    tried = case(
        1, (2, 2), (2, 2), length, length, 8, 8, lengths=False, dtype=torch.float32, sharpness=sharp
    )
    with torch.no_grad():
        exact = loss(tried.to(torch.float64), "reference")
        value = loss(tried, backend)
    assert abs(value - exact) <= 1e-3 * exact


@every_backend
@pytest.mark.parametrize("normalization", ["map", "row"])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("total", [1.0, 100.0])
def test_steep_softmaxes(backend, normalization, temperature, total):
    tried = case(normalization=normalization, temperature=temperature, sharpness=8.0)
    tried.weight = tried.weight / tried.weight.abs().sum(1, keepdim=True) * total
    exact_value, exact = gradients(tried)
    value, found = gradients(tried.to(torch.float32), backend)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-3, atol=0)
    for gradient, truth in zip(found, exact, strict=True):
        assert (gradient - truth).abs().max() <= 1e-3 * truth.abs().max()


@every_backend
@every_normalization
def test_float16_gradients_under_a_loss_scale(backend, normalization):
    # They are below float16's smallest number until the scale multiplies them.
    def scaled(tried, backend):
        tried.options["student_scale"] = 2.0**-22
        learned = [tensor.requires_grad_() for tensor in tried.attention[:2]]
        return torch.autograd.grad(loss(tried, backend) * 2.0**24, learned)

    tried = case(dtype=torch.float16, normalization=normalization)
    exact = scaled(tried.to(torch.float64), "reference")
    for one, other in zip(scaled(tried, backend), exact, strict=True):
        assert (one.double() - other).norm() < 2.0**-10 * other.norm()  # rounded once


@every_backend
@every_normalization
def test_a_teacher_may_be_run_in_inference_mode(backend, normalization):
    tried = case(normalization=normalization)
    value, expected = gradients(tried, backend)
    with torch.inference_mode():
        tried.teacher_query = tried.teacher_query.clone()
        tried.teacher_key = tried.teacher_key.clone()
    again, found = gradients(tried, backend)
    assert torch.equal(again, value)
    assert all(map(torch.equal, found, expected))
