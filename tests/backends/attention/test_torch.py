"""The `torch` backend against the definition, in blocks of every size."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastkd.backends.attention.torch as backend
from fastkd import alignment_loss_from_maps, attention_alignment_loss
from fastkd.backends.attention.torch import batch, sources
from tests.functional.attention_literal import case, maps

NORMALIZATIONS = ("map", "row", "mixture")
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)


@pytest.fixture(params=[1, 3000, 1 << 20])
def workspace(request, monkeypatch):
    """Bytes: a row at a time, a few rows or sentences at a time, everything at once."""
    monkeypatch.setattr(backend, "CPU_WORKSPACE", request.param)


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh workspace holds NaN."""
    monkeypatch.setattr(
        sources.torch, "empty", lambda *shape, **options: torch.full(shape, torch.nan, **options)
    )


@pytest.fixture
def unreadable_lengths(monkeypatch):
    """As on a device that the host must not wait for."""
    monkeypatch.setattr(batch, "lengths_known", lambda lengths: lengths is None)


def compared(tried, tolerance=1e-10, **options):
    """Loss of each map and gradients under a random upstream, as the reference has them."""
    results = []
    upstream = torch.randn(
        tried.teacher_query.shape[0],
        tried.teacher_query.shape[1],
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    for name in ("torch", "reference"):
        tensors = [tensor.requires_grad_() for tensor in tried.learned()]
        arguments = {**tried.options, **options, "backend": name}
        each = attention_alignment_loss(
            *tried.attention, tried.weight, tried.bias, reduction="none", **arguments
        )
        total = attention_alignment_loss(
            *tried.attention, tried.weight, tried.bias, reduction="mean", **arguments
        )
        results.append(
            (
                each.detach(),
                torch.autograd.grad(each, tensors, upstream),
                total.detach(),
                torch.autograd.grad(2 * total, tensors),
            )
        )
    ours, definition = results
    torch.testing.assert_close(ours, definition, rtol=tolerance, atol=tolerance)


@every_normalization
@pytest.mark.parametrize("padding", ["exclude", "include"])
def test_every_option(normalization, padding, workspace, poisoned):
    for causal, lengths, mix in itertools.product([False, True], repeat=3):
        compared(
            case(
                batch=5,
                student=(4, 2) if mix else (3, 1),
                queries=7,
                mix=mix,
                bias=mix and normalization != "mixture",
                lengths=lengths,
                causal=causal,
                normalization=normalization,
                padding=padding,
                temperature=1.0 if normalization == "mixture" else 0.7,
            )
        )


@every_normalization
@pytest.mark.parametrize("padding", ["exclude", "include"])
def test_lengths_that_the_host_cannot_read(
    normalization, padding, workspace, poisoned, unreadable_lengths
):
    for causal in (False, True):
        tried = case(
            batch=5, queries=7, causal=causal, normalization=normalization, padding=padding
        )
        compared(tried)
        with_nan = tried.to(torch.float64)
        pads = torch.arange(7) >= tried.options["query_lengths"][:, None]
        if padding == "exclude":
            with_nan.student_query.masked_fill_(pads[:, None, :, None], torch.nan)
            compared(with_nan)


@pytest.mark.parametrize("normalization", ["map", "row"])
@pytest.mark.parametrize("padding", ["exclude", "include"])
def test_steep_groups(normalization, padding, workspace, poisoned):
    # Exponents up to 1e4: they need maxima, and masks must hold through them.
    for temperature, causal in itertools.product([0.3, 0.01], [False, True]):
        tried = case(
            queries=7,
            causal=causal,
            normalization=normalization,
            padding=padding,
            temperature=temperature,
        )
        tried.weight = 30 * tried.weight
        compared(tried, tolerance=1e-8)


@st.composite
def drawn_cases(draw):
    """(arguments of `case`, lengths of queries, of keys, workspace)"""
    batch, causal = draw(st.integers(1, 5)), draw(st.booleans())
    queries, keys = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    keys = queries if causal else keys
    arguments = {
        "batch": batch,
        "queries": queries,
        "keys": keys,
        "causal": causal,
        "padding": draw(st.sampled_from(["exclude", "include"])),
        "seed": draw(st.integers(0, 99)),
    }
    lengths = [
        draw(st.lists(st.integers(0, longest), min_size=batch, max_size=batch))
        for longest in (queries, keys)
    ]
    return arguments, *lengths, draw(st.sampled_from([1, 5000, 1 << 20]))


@every_normalization
@settings(max_examples=20, deadline=None)
@given(drawn=drawn_cases())
def test_any_lengths_and_blocks(normalization, drawn):
    arguments, query_lengths, key_lengths, workspace = drawn
    tried = case(normalization=normalization, **arguments)
    tried.options["query_lengths"] = torch.tensor(query_lengths)
    tried.options["key_lengths"] = torch.tensor(key_lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "CPU_WORKSPACE", workspace)
        compared(tried)


@every_normalization
@pytest.mark.parametrize("causal", [False, True])
def test_given_maps(normalization, causal, workspace, poisoned):
    tried = case(batch=5, queries=7, causal=causal, normalization=normalization)
    student, teacher = (torch.cat([each, each.flip(1)], 1) for each in maps(tried))
    student = [part.requires_grad_() for part in student.split([3, 5], 1)]
    weight = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for name in ("torch", "reference"):
        loss = alignment_loss_from_maps(
            student, teacher.split(3, 1), weight, backend=name, **tried.options
        )
        results.append((loss.detach(), torch.autograd.grad(loss, [*student, weight])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cut", [([2, 2], [2, 2]), ([1, 3], [3, 1]), ([4], [2, 2]), ([2, 2], [4])])
@pytest.mark.parametrize("transposed", [False, True])
def test_layers(cut, transposed, workspace, poisoned):
    tried = case(5, (4, 4), (3, 1), 7, 7, normalization="row")
    results = []
    for name in ("torch", "reference"):
        tensors = []
        for tensor, heads in zip(tried.attention[:2], cut, strict=True):
            layers = [layer.clone() for layer in tensor.split(heads, 1)]
            if transposed:
                layers = [layer.transpose(1, 2).contiguous().transpose(1, 2) for layer in layers]
            tensors.append([layer.requires_grad_() for layer in layers])
        value = attention_alignment_loss(
            *tensors, *tried.attention[2:], tried.weight, backend=name, **tried.options
        )
        results.append((value.detach(), torch.autograd.grad(value, [*tensors[0], *tensors[1]])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@every_normalization
def test_second_order_is_refused(normalization):
    tried = case(normalization=normalization)
    query = tried.student_query.requires_grad_()
    for reduction in ("sum", "none"):
        value = attention_alignment_loss(
            *tried.attention, tried.weight, reduction=reduction, backend="torch", **tried.options
        ).sum()
        (gradient,) = torch.autograd.grad(value, query, create_graph=True)
        with pytest.raises(RuntimeError, match="no second-order gradient; use backend='reference'"):
            torch.autograd.grad(gradient.sum(), query)


@every_normalization
def test_a_retained_graph_gives_the_same_again(normalization):
    tried = case(normalization=normalization, dtype=torch.float32)
    tensors = [tensor.requires_grad_() for tensor in tried.learned()]
    value = 3 * attention_alignment_loss(
        *tried.attention, tried.weight, backend="torch", **tried.options
    )
    first = torch.autograd.grad(value, tensors, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    second = torch.autograd.grad(value, tensors)
    assert all(map(torch.equal, second, kept))


def test_changing_inputs_before_backward_is_refused():
    tried = case()
    query = tried.student_query.requires_grad_()
    value = attention_alignment_loss(
        *tried.attention, tried.weight, reduction="none", backend="torch", **tried.options
    )
    tried.teacher_key.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value.sum(), query)


def test_workspace_does_not_grow_with_length(monkeypatch):
    monkeypatch.setenv("FASTKD_NATIVE", "never")
    monkeypatch.setattr(backend, "CPU_WORKSPACE", 1 << 18)
    sizes = []
    take = sources.Workspace.take

    def recorded(self, name, *shape):
        buffer = take(self, name, *shape)
        sizes.append(sum(each.nbytes for each in self.buffers.values()))
        return buffer

    monkeypatch.setattr(sources.Workspace, "take", recorded)
    for length in (64, 512):
        tried = case(2, (4, 4), (3, 3), length, length, lengths=False, dtype=torch.float32)
        tried.student_query.requires_grad_()
        attention_alignment_loss(*tried.attention, tried.weight, backend="torch").backward()
    assert max(sizes) <= 1 << 18


def test_backward_ignores_autocast():
    tried = case(dtype=torch.float32)
    query = tried.student_query.requires_grad_()
    value = attention_alignment_loss(
        *tried.attention, tried.weight, reduction="none", backend="torch", **tried.options
    )
    plain = torch.autograd.grad(value.sum(), query, retain_graph=True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(value.sum(), query)[0]
    assert torch.equal(plain, inside)
