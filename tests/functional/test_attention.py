"""The alignment losses against their formulas, and what must hold of them on every backend."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import alignment_loss_from_maps, attention_alignment_loss
from tests.functional.attention_literal import case, literal, maps

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
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), causal=st.booleans(), junk=st.sampled_from([1e4, -3.0]))
def test_padding_never_matters_where_excluded(backend, normalization, seed, causal, junk):
    plain = case(causal=causal, normalization=normalization, seed=seed)
    padded = plain.to(torch.float64)
    pad_queries = _pads(plain.options["query_lengths"], plain.student_query.shape[2])
    pad_keys = _pads(plain.options["key_lengths"], plain.student_key.shape[2])
    padded.student_query.masked_fill_(pad_queries, junk)
    padded.teacher_query.masked_fill_(pad_queries, -junk)
    padded.student_key.masked_fill_(pad_keys, junk)
    padded.teacher_key.masked_fill_(pad_keys, -junk)
    value, found = gradients(plain, backend)
    padded_value, padded_found = gradients(padded, backend)
    torch.testing.assert_close(padded_value, value)
    torch.testing.assert_close(padded_found, found)
    assert padded_found[0].masked_select(pad_queries).eq(0).all()
    assert padded_found[1].masked_select(pad_keys).eq(0).all()


def _pads(lengths, longest):
    return (torch.arange(longest) >= lengths[:, None])[:, None, :, None]


@every_backend
@every_normalization
def test_nan_in_padding_never_matters(backend, normalization):
    plain = case(normalization=normalization)
    padded = plain.to(torch.float64)
    pad_queries = _pads(plain.options["query_lengths"], plain.student_query.shape[2])
    pad_keys = _pads(plain.options["key_lengths"], plain.student_key.shape[2])
    for query in (padded.student_query, padded.teacher_query):
        query.masked_fill_(pad_queries, torch.nan)
    for key in (padded.student_key, padded.teacher_key):
        key.masked_fill_(pad_keys, torch.nan)
    torch.testing.assert_close(gradients(padded, backend), gradients(plain, backend))


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), padding=st.sampled_from(PADDINGS))
def test_cutting_a_batch_changes_nothing(backend, normalization, seed, padding):
    tried = case(batch=5, normalization=normalization, padding=padding, seed=seed)
    whole = loss(tried, backend, reduction="none")
    for b in range(5):
        one = tried.to(torch.float64)
        attention = [tensor[b : b + 1] for tensor in one.attention]
        for name in ("query_lengths", "key_lengths"):
            one.options[name] = tried.options[name][b : b + 1]
        part = attention_alignment_loss(
            *attention, one.weight, reduction="none", backend=backend, **one.options
        )
        torch.testing.assert_close(part[0], whole[b])


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), order=st.permutations(range(4)))
def test_order_of_student_heads_is_free(backend, normalization, seed, order):
    tried = case(student=(4, 4), normalization=normalization, seed=seed)
    order = list(order)
    shuffled = tried.to(torch.float64)
    shuffled.student_query = tried.student_query[:, order]
    shuffled.student_key = tried.student_key[:, order]
    shuffled.weight = tried.weight[:, order]
    value, found = gradients(tried, backend)
    other, shuffled_found = gradients(shuffled, backend)
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(shuffled_found[0], found[0][:, order])
    torch.testing.assert_close(shuffled_found[2], found[2][:, order])


@every_backend
@every_normalization
@quick
@given(seed=st.integers(0, 2**16), order=st.permutations(range(5)))
def test_order_of_queries_is_free(backend, normalization, seed, order):
    tried = case(lengths=False, normalization=normalization, seed=seed)
    order = list(order)
    shuffled = tried.to(torch.float64)
    shuffled.student_query = tried.student_query[:, :, order]
    shuffled.teacher_query = tried.teacher_query[:, :, order]
    torch.testing.assert_close(loss(shuffled, backend), loss(tried, backend))


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
@every_normalization
def test_strides_are_free_and_inputs_unchanged(backend, normalization):
    tried = case(student=(4, 4), normalization=normalization)
    before = [tensor.clone() for tensor in (*tried.attention, tried.weight)]
    expected = gradients(tried, backend)
    for tensor, copy in zip((*tried.attention, tried.weight), before, strict=True):
        assert torch.equal(tensor, copy)
    strided = tried.to(torch.float64)
    for name in ("student_query", "student_key", "teacher_query", "teacher_key"):
        tensor = getattr(strided, name)
        setattr(strided, name, tensor.transpose(1, 2).contiguous().transpose(1, 2))
    strided.weight = strided.weight.T.contiguous().T
    torch.testing.assert_close(gradients(strided, backend), expected)


@every_backend
def test_expanded_inputs(backend):
    tried = case(batch=1, student=(1, 1), teacher=(1, 1), lengths=False)
    key = tried.student_key.expand(3, 2, -1, -1)
    query = tried.student_query.expand(3, 2, -1, -1)
    teacher = [tensor.expand(3, 2, -1, -1) for tensor in tried.attention[2:]]
    value = attention_alignment_loss(query, key, *teacher, reduction="none", backend=backend)
    one = attention_alignment_loss(*tried.attention, reduction="none", backend=backend)
    torch.testing.assert_close(value, one.expand(3, 2))


@every_backend
@every_normalization
def test_deterministic(backend, normalization):
    tried = case(dtype=torch.float32, normalization=normalization)
    first, second = gradients(tried, backend), gradients(tried, backend)
    assert torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1], second[1]))


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
def test_probability_below_the_smallest_has_no_gradient(backend):
    student = torch.tensor([[1.0, 2.0**-130]]).double()[None, None].requires_grad_()
    teacher = torch.tensor([[0.5, 0.5]]).double()[None, None]
    value = alignment_loss_from_maps(student, teacher, normalization="mixture", backend=backend)
    (gradient,) = torch.autograd.grad(value, student)
    expected = -torch.tensor(2.0).double().log() + 0.5 * 126 * torch.tensor(2.0).double().log()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient.flatten().tolist(), [-0.5, 0.0])


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
