"""The compiled walk of the `torch` backend, and the one that stands in where it cannot be built."""

import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastkd.backends.attention.torch as backend
from fastkd import attention_alignment_loss
from fastkd.backends.attention.torch import native, sources
from fastkd.backends.attention.torch.native_walk import NativeWalk
from tests.kernels.attention_compare import (
    assert_as_exact_as_reference,
    attention,
    distance,
    run,
)

NORMALIZATIONS = ("map", "row", "mixture")
every_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
every_padding = pytest.mark.parametrize("padding", ["exclude", "include"])


@pytest.fixture
def compiled(monkeypatch):
    """Calls of any size take the compiled kernel."""
    if native.library() is None:
        pytest.skip("no C++ compiler")
    runs = []
    monkeypatch.setenv("FASTKD_NATIVE", "always")
    run = NativeWalk.run
    monkeypatch.setattr(NativeWalk, "run", lambda self: (runs.append(self), run(self)))
    yield
    assert runs


@pytest.fixture(params=["never", "always-1", "always-2"])
def walk(request, monkeypatch):
    """Whether the kernel is used, and by how many threads."""
    choice, _, threads = request.param.partition("-")
    if choice == "always":
        request.getfixturevalue("compiled")
    monkeypatch.setenv("FASTKD_NATIVE", choice)
    before = torch.get_num_threads()
    torch.set_num_threads(int(threads or 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 30_000, 1 << 23])
def workspace(request, monkeypatch):
    """Bytes: a row at a time, a block of rows or a short sentence, everything at once."""
    monkeypatch.setattr(backend, "CPU_WORKSPACE", request.param)


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh workspace holds NaN."""
    monkeypatch.setattr(
        sources.torch, "empty", lambda *shape, **options: torch.full(shape, torch.nan, **options)
    )


def exact(inputs, **options):
    return assert_as_exact_as_reference(inputs, backend="torch", **options)


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@every_padding
@every_normalization
def test_every_option(normalization, padding, walk, workspace, poisoned):
    for group, weighted, reduction in ((1, True, "sum"), (2, True, "none"), (2, False, "mean")):
        for causal in (False, True):
            inputs = attention(
                3, 4, 6 if weighted else 4, 19, 19 if causal else 35, group=group, weighted=weighted
            )
            exact(inputs, normalization=normalization, padding=padding, causal=causal,
                  reduction=reduction)  # fmt: skip
            exact(inputs, normalization=normalization, padding=padding, causal=causal,
                  reduction=reduction, query_lengths=lengths(19, 3, 0),
                  key_lengths=lengths(1, 17, 5))  # fmt: skip


@st.composite
def drawn_calls(draw):
    """(arguments of `attention`, workspace, temperature, options)"""

    def some(least, most):
        return draw(st.integers(least, most))

    batch, group, causal = some(1, 4), some(1, 2), draw(st.booleans())
    queries, keys = some(1, 70), some(1, 150)
    keys = queries if causal else keys
    arguments = {
        "batch": batch,
        "students": some(1, 5) * group,
        "teachers": some(1, 6) * group,
        "queries": queries,
        "keys": keys,
        "student_size": draw(st.sampled_from([16, 24, 64, 100])),
        "teacher_size": draw(st.sampled_from([16, 20, 32])),
        "group": group,
        "seed": some(0, 99),
    }
    options = {
        "causal": causal,
        "padding": draw(st.sampled_from(["exclude", "include"])),
        "query_lengths": lengths(*(some(0, queries) for _ in range(batch))),
        "key_lengths": lengths(*(some(0, keys) for _ in range(batch))),
    }
    workspace = draw(st.sampled_from([1, 50_000, 1 << 22]))
    return arguments, workspace, draw(st.floats(0.1, 3)), options


@every_normalization
@settings(max_examples=25, deadline=None)
@given(drawn=drawn_calls())
def test_drawn_shapes(normalization, drawn):
    arguments, workspace, temperature, options = drawn
    inputs = attention(**arguments)
    if normalization == "mixture":
        temperature = 1.0
        inputs[4] = inputs[4].abs()  # next to 0, its logarithm and gradient have no digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTKD_NATIVE", "always")
        patch.setattr(backend, "CPU_WORKSPACE", workspace)
        exact(inputs, normalization=normalization, temperature=temperature, **options)


def worst_of_orders(inputs, backend, **options):
    """Plain PyTorch's least exact results, by the order in which heads are summed up.

    Where sums nearly cancel its error is a matter of luck: from 2e-6 to 5e-6 by order alone.
    """
    truth = run([tensor.double() for tensor in inputs], backend, **options)
    found = []
    for shift in range(6):
        moved = [tensor.roll(shift, -1) for tensor in inputs[:4]]
        loss, query, key, weight = run([*moved, inputs[4]], backend, **options)
        found.append([loss, query.roll(-shift, -1), key.roll(-shift, -1), weight])
    return [
        max(results, key=lambda result: distance(result, exact))
        for results, exact in zip(zip(*found, strict=True), truth, strict=True)
    ]


@pytest.mark.parametrize("normalization", ["map", "row"])
@pytest.mark.parametrize("temperature", [0.3, 0.25, 0.1, 0.05, 0.04])
def test_sharp_exponents(normalization, temperature, walk, workspace):
    """One cell decides Z, and student and teacher differ there: sums of d nearly cancel."""
    inputs = attention(queries=8, keys=60)
    inputs[0] *= 0.1
    inputs[2] *= 20
    inputs[4] = inputs[4].abs() / inputs[4].abs().sum(1, keepdim=True)
    for padding in ("exclude", "include"):
        exact(inputs, normalization=normalization, temperature=temperature, padding=padding,
              key_lengths=lengths(60, 9), beside=worst_of_orders)  # fmt: skip


@pytest.mark.parametrize("sharpness", [20.0, 100.0])
def test_probabilities_that_underflow(sharpness, walk):
    exact(attention(sharpness=sharpness, keys=30), normalization="mixture")


@pytest.mark.parametrize("length", [256, 1024, 2048])
def test_long_maps_keep_their_digits(length, walk):
    """At τ = 1 the two softmaxes over a map are nearly uniform, and the loss about 1e-5."""
    inputs = attention(1, 2, 2, length, length)
    with torch.no_grad():
        truth = attention_alignment_loss(*(each.double() for each in inputs), backend="torch")
        found = attention_alignment_loss(*inputs, backend="torch")
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("normalization", ["map", "row"])
def test_large_weights_and_small_temperatures(normalization, temperature):
    """Beyond what the kernel takes."""
    inputs = attention(queries=8, keys=60)
    inputs[4] *= 100 / inputs[4].abs().sum(1).max()
    exact(inputs, normalization=normalization, temperature=temperature, reduction="none")


def test_memory_grows_with_length_at_most_as_the_inputs_do(compiled, monkeypatch):
    monkeypatch.setattr(backend, "CPU_WORKSPACE", 1 << 16)
    taken = []
    take = sources.Workspace.take

    def recorded(self, name, *shape):
        taken.append(take(self, name, *shape))
        return taken[-1]

    monkeypatch.setattr(sources.Workspace, "take", recorded)
    sizes = []
    for length in (256, 1024):
        taken.clear()
        run(attention(2, 4, 4, length, length, 16, 16), "torch", normalization="map")
        sizes.append(sum(each.nbytes for each in taken))
    assert sizes[1] - sizes[0] <= 4 * (1024 - 256) * (4 + 4 + 2 * 16)


@every_normalization
def test_layers_and_strides(normalization, walk):
    tensors = attention(3, 4, 6, 17, 21, 32, 48, group=2)
    whole = run(tensors, "torch", normalization=normalization)
    strided = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in tensors[:4]]
    for found, plain in zip(
        run([*strided, tensors[4]], "torch", normalization=normalization), whole, strict=True
    ):
        assert torch.equal(found, plain)
    layers = [each.split(each.shape[1] // 2, 1) for each in tensors[:4]]
    loss = attention_alignment_loss(
        *layers, tensors[4], normalization=normalization, backend="torch"
    )
    assert torch.equal(loss, whole[0])


def test_layers_whose_heads_share_memory(walk):
    """Heads of the first layer are one head, expanded; the second layer has its own."""
    student = attention(2, 2, 5, 9, 13)
    key = [student[1][:, :1].expand(-1, 2, -1, -1), torch.randn(2, 3, 13, 16)]
    query = [student[0], torch.randn(2, 3, 9, 16)]
    results = []
    for name in ("torch", "reference"):
        leaves = [tensor.detach().requires_grad_() for tensor in (*query, *key)]
        loss = attention_alignment_loss(
            leaves[:2], leaves[2:], *student[2:4], normalization="row", backend=name
        )
        results.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@every_normalization
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(normalization, dtype, walk):
    inputs = [each.to(dtype) for each in attention(3, 3, 5, 17, 21)[:4]]
    exact([*inputs, attention()[4]], normalization=normalization, query_lengths=lengths(5, 17, 1))


@every_normalization
@pytest.mark.parametrize("sizes", [(16, 32), (20, 32)])  # read as they lie, or copied
def test_autocast_rounds_queries_and_keys_alone(normalization, sizes, walk, poisoned):
    inputs = attention(3, 4, 6, 53, 70, *sizes, group=2)
    options = {"normalization": normalization, "key_lengths": lengths(70, 33, 5)}
    with torch.autocast("cpu", torch.bfloat16):
        found = run(inputs, "torch", **options)
    rounded = [each.bfloat16().float() for each in inputs[:4]]
    for mine, plain in zip(found, run([*rounded, inputs[4]], "torch", **options), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


@every_normalization
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_nan_is_not_hidden(normalization, place, compiled):
    inputs = attention(2, 3, 5, 7, 9)
    inputs[place][1, 0, 2, 3] = torch.nan
    loss, *gradients = run(inputs, "torch", normalization=normalization, reduction="none")
    assert loss[0].isfinite().all()
    assert loss[1, : 1 if place > 1 else None].isnan().all()
    assert gradients[0][1].isnan().any() and gradients[0][0].isfinite().all()


@every_normalization
def test_padding_may_hold_anything(normalization, compiled):
    inputs = attention(2, 3, 5, 20, 40)
    options = {
        "normalization": normalization,
        "query_lengths": lengths(3, 20),
        "key_lengths": lengths(33, 2),
    }
    clean = run(inputs, "torch", **options)
    for place, real in enumerate(((3, 20), (33, 2)) * 2):
        for sentence, length in enumerate(real):
            inputs[place][sentence, :, length:] = torch.nan
    for found, plain in zip(run(inputs, "torch", **options), clean, strict=True):
        assert torch.equal(found, plain)


@every_normalization
def test_the_same_bits_twice(normalization, walk, workspace):
    inputs = attention(5, 3, 5, 40, 50)
    for first, second in zip(
        run(inputs, "torch", normalization=normalization),
        run(inputs, "torch", normalization=normalization),
        strict=True,
    ):
        assert torch.equal(first, second)


def test_without_avx512(compiled, monkeypatch):
    """Vectors are shorter on most processors."""
    expected = run(attention(3, 5, 6, 40, 50), "torch", normalization="row")
    before = native.library()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-mno-avx512f"))
    native.library.cache_clear()
    try:
        assert native.library() is not None and native.library() is not before
        for normalization in NORMALIZATIONS:
            exact(attention(3, 5, 6, 40, 50, group=1), normalization=normalization)
        found = run(attention(3, 5, 6, 40, 50), "torch", normalization="row")
    finally:
        native.library.cache_clear()
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def in_a_child(queue):
    torch.set_num_threads(1)
    queue.put(run(attention(), "torch", normalization="row")[0].item())


def test_a_forked_process_computes_too(compiled):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = run(attention(), "torch", normalization="row")[0].item()
    finally:
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_a_child, args=(queue,))
    child.start()
    assert queue.get(timeout=300) == pytest.approx(expected, rel=1e-6)
    child.join()
