"""The alignment losses against their formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastkd import alignment_loss_from_maps, attention_alignment_loss
from tests.functional.attention_backends import (
    PADDINGS,
    every_backend,
    every_normalization,
    every_padding,
    gradients,
    loss,
    quick,
)
from tests.functional.attention_literal import case, literal, maps


@every_backend
@every_padding
@every_normalization
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("mix", [False, True])
def test_formula(backend, padding, normalization, causal, lengths, mix):
    tried = case(
        student=(4, 2) if mix else (3, 3),
        mix=mix,
        bias=mix and normalization != "mixture",
        lengths=lengths,
        causal=causal,
        normalization=normalization,
        padding=padding,
        temperature=1.0 if normalization == "mixture" else 0.3,
    )
    expected = literal(tried)
    torch.testing.assert_close(loss(tried, backend, reduction="none"), expected)
    torch.testing.assert_close(loss(tried, backend), expected.sum())
    torch.testing.assert_close(loss(tried, backend, reduction="mean"), expected.sum() / 3)
    student, teacher = maps(tried)
    from_maps = alignment_loss_from_maps(
        student,
        teacher,
        tried.weight,
        tried.bias,
        reduction="none",
        backend=backend,
        **tried.options,
    )
    torch.testing.assert_close(from_maps, expected)


@every_backend
def test_published_loss_by_hand(backend):
    # Two queries, two keys, one pad key: the softmax runs over all four cells, zeros included.
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()[None, None]
    teacher = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).double()[None, None]
    keys = torch.tensor([1])
    masked = torch.tensor([0.25, 0, 0.5, 0]).double()
    q = masked.exp() / masked.exp().sum()
    m = torch.tensor([2.0, 0, 2, 0]).double()
    log_m = m - m.exp().sum().log()
    value = alignment_loss_from_maps(
        student,
        teacher,
        torch.tensor([[2.0]]).double(),
        key_lengths=keys,
        padding="include",
        backend=backend,
    )
    torch.testing.assert_close(value, (q * (q.log() - log_m)).sum())


@every_backend
@every_normalization
def test_layers_are_their_concatenation(backend, normalization):
    tried = case(student=(4, 4), teacher=(3, 3), normalization=normalization)
    expected_value, expected = gradients(tried, backend)
    layers = tried.to(torch.float64)
    split = layers.student_query.requires_grad_(), layers.student_key.requires_grad_()
    value = attention_alignment_loss(
        list(split[0].split([1, 3], 1)),
        tuple(split[1].split([2, 2], 1)),
        layers.teacher_query.split(1, 1),
        layers.teacher_key,
        layers.weight,
        backend=backend,
        **layers.options,
    )
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(torch.autograd.grad(value, split), expected[:2])


@every_backend
def test_maps_outside_lengths_are_zeroed_first(backend):
    tried = case(normalization="row", padding="include", causal=True)
    student, teacher = maps(tried)
    expected = alignment_loss_from_maps(
        student, teacher, tried.weight, backend=backend, **tried.options
    )
    outside = student == 0
    student = student.masked_fill(outside, torch.nan).requires_grad_()
    value = alignment_loss_from_maps(
        student,
        teacher.masked_fill(outside[:, :1], 7),
        tried.weight,
        backend=backend,
        **tried.options,
    )
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.masked_select(outside).eq(0).all()


@every_backend
@every_normalization
@every_padding
def test_rows_without_anything_to_compare(backend, normalization, padding):
    tried = case(normalization=normalization, padding=padding)
    tried.options["key_lengths"] = torch.zeros(3, dtype=torch.int64)
    value, found = gradients(tried, backend)
    assert value == 0
    assert all(gradient.eq(0).all() for gradient in found)


@every_backend
@pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}, {"keys": 0}])
def test_no_cells(backend, shape):
    tried = case(lengths=False, **shape)
    value, found = gradients(tried, backend)
    assert value == 0
    assert all(gradient.eq(0).all() for gradient in found)
    assert loss(tried, backend, reduction="none").shape == (tried.student_query.shape[0], 3)


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), causal=st.booleans(), padding=st.sampled_from(PADDINGS))
def test_equal_maps_have_no_loss(backend, normalization, seed, causal, padding):
    tried = case(
        student=(3, 3),
        mix=False,
        size=4,
        causal=causal,
        normalization=normalization,
        padding=padding,
        seed=seed,
    )
    tried.student_query = tried.teacher_query.clone()
    tried.student_key = tried.teacher_key.clone()
    value, found = gradients(tried, backend)
    assert abs(value) < 1e-13
    assert all(gradient.abs().max() < 1e-13 for gradient in found)


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), causal=st.booleans(), mix=st.booleans())
def test_never_negative(backend, normalization, seed, causal, mix):
    tried = case(
        student=(4, 2) if mix else (3, 1),
        mix=mix,
        causal=causal,
        normalization=normalization,
        seed=seed,
    )
    assert (loss(tried, backend, reduction="none") >= -1e-14).all()


@every_backend
@quick
@given(seed=st.integers(0, 2**16), factor=st.floats(0.2, 5))
def test_temperature_scales_the_maps(backend, seed, factor):
    tried = case(seed=seed)
    student, teacher = maps(tried)
    expected = alignment_loss_from_maps(
        student, factor * teacher, factor * tried.weight, backend=backend, **tried.options
    )
    torch.testing.assert_close(loss(tried, backend, temperature=1 / factor), expected)


@every_backend
def test_what_is_there_does_not_matter_without_cells(backend):
    tried = case(lengths=False, queries=0).to(torch.float16)
    tried.student_key = torch.full_like(tried.student_key, torch.nan)
    value, found = gradients(tried, backend)
    assert value == 0 and value.dtype == torch.float32
    assert all(gradient.eq(0).all() for gradient in found)
    tried.teacher_query = tried.teacher_query.double()
    tried.teacher_key = tried.teacher_key.double()
    assert loss(tried, backend).dtype == torch.float64
