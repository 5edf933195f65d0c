"""The CPU backends as compilers and torch.func see them."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

from fastkd import (
    BackendUnavailable,
    SparseTeacher,
    alignment_loss_from_maps,
    attention_alignment_loss,
    linear_token_distillation_loss,
    token_distillation_loss,
)

BACKENDS = ("reference", "torch")
MOST = 5  # compilations over all lengths


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


WEIGHT, TEACHER_WEIGHT = torch.randn(30, 8), torch.randn(30, 5)


def tokens(rows, kind):
    """Inputs (...) of a call with so many rows, the learned ones first."""
    torch.manual_seed(rows)
    target = torch.randint(30, (rows,))
    target[0] = -100
    hidden, teacher = torch.randn(rows, 8), torch.randn(rows, 5)
    if kind == "linear":
        return hidden, WEIGHT.clone(), teacher, TEACHER_WEIGHT, target
    if kind == "dense":
        return hidden @ WEIGHT.T, teacher @ TEACHER_WEIGHT.T, target
    log_probs, ids = (teacher @ TEACHER_WEIGHT.T).log_softmax(-1).topk(6)
    return hidden @ WEIGHT.T, ids, log_probs, target


def token_loss(kind, backend, reduction, *inputs, **others):
    options = {
        "ce_weight": 0.5, "kd_weight": 0.5, "rank_weight": 0.3, "top_k": 3,
        "reduction": reduction, "backend": backend, **others,
    }  # fmt: skip
    if kind == "linear":
        return linear_token_distillation_loss(*inputs, **options).loss
    if kind == "listed":
        student, ids, log_probs, target = inputs
        listed = SparseTeacher(ids, log_probs, "spread")
        return token_distillation_loss(student, listed, target, **options).loss
    return token_distillation_loss(*inputs, **options).loss


def same_as_eager(function, compiled, inputs, learned):
    results = []
    for run in (function, compiled):
        given = [tensor.detach().clone() for tensor in inputs]
        leaves = [given[n].requires_grad_() for n in learned]
        loss = run(*given)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, leaves)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reduction"), [("dense", "mean"), ("linear", "none"), ("listed", "sum")]
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_tokens_of_many_lengths(backend, kind, reduction, step):
    def function(*inputs):
        return token_loss(kind, backend, reduction, *inputs)

    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for rows in range(20, 120, 2)[::step]:
        learned = (0, 1) if kind == "linear" else (0,)
        same_as_eager(function, compiled, tokens(rows, kind), learned)
    assert counter.frame_count <= MOST


@pytest.mark.parametrize(
    ("kind", "form"),
    [("dense", "reverse_kl"), ("linear", "jsd"), ("listed", "skew_kl"), ("dense", "tvd"),
     ("listed", "skew_reverse_kl")],
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_divergences(backend, kind, form):
    def function(*inputs):
        return token_loss(kind, backend, "mean", *inputs, divergence=form, entropy_weight=0.1)

    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for rows in (20, 33, 47):
        learned = (0, 1) if kind == "linear" else (0,)
        same_as_eager(function, compiled, tokens(rows, kind), learned)
    assert counter.frame_count <= MOST


def attention(length, maps):
    torch.manual_seed(length)
    lengths = torch.tensor([length, length - 2])
    weight = torch.randn(3, 2)
    if maps:
        sides = (torch.rand(2, heads, length, length).softmax(-1) for heads in (2, 3))
        return *sides, weight, lengths
    sides = (torch.randn(2, heads, length, 4) for heads in (2, 2, 3, 3))
    return *sides, weight, lengths


@pytest.mark.parametrize(
    ("maps", "form", "reduction"),
    [(False, "map", "mean"), (True, "row", "none"), (False, "mixture", "rows")],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_alignment_of_many_lengths(backend, maps, form, reduction, step):
    loss = alignment_loss_from_maps if maps else attention_alignment_loss

    def function(*inputs):
        *tensors, lengths = inputs
        return loss(
            *tensors, query_lengths=lengths, key_lengths=lengths, normalization=form,
            reduction=reduction, backend=backend,
        )  # fmt: skip

    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for length in range(5, 55)[::step]:
        learned = (0, 2) if maps else (0, 1, 4)
        same_as_eager(function, compiled, attention(length, maps), learned)
    assert counter.frame_count <= MOST


@pytest.mark.slow  # a C++ compiler at work
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_code_that_inductor_writes():
    """Two lengths, the second of which it takes for any."""

    def function(*inputs):
        return token_loss("dense", "reference", "mean", *inputs)

    compiled = torch.compile(function, fullgraph=True)
    for length in (12, 17):
        same_as_eager(function, compiled, tokens(length, "dense"), (0,))


def test_autocast_is_that_of_the_trace():
    def function(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return token_loss("linear", "torch", "mean", *inputs)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    same_as_eager(function, compiled, tokens(12, "linear"), (0, 1))


@pytest.mark.parametrize("kind", ["dense", "linear", "listed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_export_with_dynamic_rows(backend, kind):
    class Loss(torch.nn.Module):
        def forward(self, *inputs):
            return token_loss(kind, backend, "mean", *inputs)

    rows = torch.export.Dim("rows", min=2)
    shapes = tuple({} if len(tensor) == 30 else {0: rows} for tensor in tokens(20, kind))
    exported = torch.export.export(
        Loss(), tokens(20, kind), dynamic_shapes={"inputs": shapes}
    ).module()
    for count in (20, 31):
        inputs = tokens(count, kind)
        torch.testing.assert_close(exported(*inputs), Loss()(*inputs))


@pytest.mark.parametrize("kind", ["dense", "linear", "alignment"])
def test_tangents_and_torch_func_are_right_or_refused(kind):
    inputs = attention(6, False) if kind == "alignment" else tokens(6, kind)

    def loss(first, backend):
        if kind != "alignment":
            return token_loss(kind, backend, "mean", first, *inputs[1:])
        *tensors, lengths = first, *inputs[1:]
        return attention_alignment_loss(
            *tensors, key_lengths=lengths, normalization="row", backend=backend
        )

    first = inputs[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(first, "torch"), first)
    first = first.detach()
    direction = torch.randn_like(first)
    for backend in ("auto", "reference"):
        gradient = torch.func.grad(lambda tensor, name=backend: loss(tensor, name))(first)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        tangents = [torch.func.jvp(lambda t, n=backend: loss(t, n), (first,), (direction,))[1]]
        with forward_ad.dual_level():
            found = loss(forward_ad.make_dual(first, direction), backend)
            tangents.append(forward_ad.unpack_dual(found).tangent)
        for tangent in tangents:
            torch.testing.assert_close(
                tangent.float(), (expected * direction).sum(), rtol=1e-3, atol=1e-5
            )
    with pytest.raises(BackendUnavailable, match=r"torch.func"):
        torch.func.grad(lambda tensor: loss(tensor, "torch"))(first)
    with forward_ad.dual_level(), pytest.raises(BackendUnavailable, match="forward-mode"):
        loss(forward_ad.make_dual(first, direction), "torch")


@pytest.mark.parametrize("form", ["map", "row", "mixture"])
def test_alignment_of_each_sample(form):
    query, key, other, keys = torch.randn(4, 3, 2, 5, 4)  # three samples
    lengths = torch.tensor([5, 3, 4])

    def loss(*inputs):
        *sides, length = (tensor[None] for tensor in inputs)
        return attention_alignment_loss(
            *sides, query_lengths=length, key_lengths=length, normalization=form
        )

    samples = query, key, other, keys, lengths
    together = torch.func.vmap(torch.func.grad(loss))(*samples)
    apart = [torch.func.grad(loss)(*sample) for sample in zip(*samples, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("kind", ["dense", "linear", "listed"])
def test_gradients_of_each_sample(kind):
    """A sample that counts nothing among them."""
    inputs = tokens(6, kind)
    mapped = [None if len(tensor) == 30 else 0 for tensor in inputs]

    def loss(*inputs):
        pairs = zip(inputs, mapped, strict=True)
        given = (tensor if axis is None else tensor[None] for tensor, axis in pairs)
        return token_loss(kind, "auto", "mean", *given)

    together = torch.func.vmap(torch.func.grad(loss), in_dims=tuple(mapped))(*inputs)
    for sample, found in enumerate(together):
        alone = [t if axis is None else t[sample] for t, axis in zip(inputs, mapped, strict=True)]
        torch.testing.assert_close(found, torch.func.grad(loss)(*alone))
    assert not together[0].any() and together[1].any()


def test_gradients_of_each_student_and_sample():
    hidden, weight, teacher, other, target = tokens(6, "linear")
    students = torch.stack([weight, 2 * weight])

    def loss(weight, hidden, teacher, target):
        return token_loss("linear", "auto", "sum", hidden, weight, teacher, other, target)

    of_students = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None, None))
    samples = (hidden[:, None], teacher[:, None], target[:, None])
    both = torch.func.vmap(of_students, in_dims=(None, 0, 0, 0))(students, *samples)
    for student, gradient in enumerate(both.sum(0)):
        whole = torch.func.grad(loss)(students[student], hidden, teacher, target)
        torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_samples_of_a_backward_of_our_own(backend):
    """`auto` leaves them to the definition; values without gradient, too."""
    inputs = tokens(6, "dense")

    def loss(*inputs):
        return token_loss("dense", backend, "sum", *(tensor[None] for tensor in inputs))

    if backend == "torch":
        with pytest.raises(BackendUnavailable, match=r"torch.func"):
            torch.func.vmap(loss)(*inputs)
        return
    expected = token_loss("dense", "torch", "none", *inputs)
    torch.testing.assert_close(torch.func.vmap(loss)(*inputs), expected)
