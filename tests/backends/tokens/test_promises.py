"""What the torch token losses promise beyond their numbers: memory, devices, repetition, types."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from fastkd.backends.tokens.torch import numerics, positions

ALL = {"ce_weight": 0.5, "kd_weight": 1.5, "rank_weight": 2.0, "top_k": 3, "label_smoothing": 0.1}


def pointer(value) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else 0


class Recorder(TorchDispatchMode):
    """The shape of every tensor that an operator makes, views left out, and the operands of every
    matrix product."""

    def __init__(self):
        super().__init__()
        self.made: list[torch.Size] = []
        self.products: list[tuple[torch.Tensor, ...]] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        known = {pointer(leaf) for leaf in tree_leaves((args, kwargs)) if pointer(leaf)}
        self.made += [
            leaf.shape
            for leaf in tree_leaves(result)
            if pointer(leaf) and pointer(leaf) not in known
        ]
        if operator.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.products.append(args)
        return result


def linear_call(rows=50, vocabulary=40, width=6, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, dtype=dtype)
    weight, bias = torch.randn(vocabulary, width, dtype=dtype), torch.randn(vocabulary, dtype=dtype)
    teacher = torch.randn(rows, width + 2, dtype=dtype)
    teacher_weight = torch.randn(vocabulary, width + 2, dtype=dtype)
    target = torch.randint(vocabulary, (rows,))
    return [hidden, weight, teacher, teacher_weight, target], bias


def learned(inputs, bias, needed=(True, True, True)):
    found = (inputs[0], inputs[1], bias)
    return [each.requires_grad_() for each, need in zip(found, needed, strict=True) if need]


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_linear_holds_logits_of_a_chunk_only(monkeypatch, reduction):
    monkeypatch.setattr(positions, "CHUNK", 5 * 300)
    inputs, bias = linear_call(rows=100, vocabulary=300)
    leaves = learned(inputs, bias)
    with Recorder() as recorder:
        result = linear_token_distillation_loss(
            *inputs, student_bias=bias, reduction=reduction, return_prediction=True,
            backend="torch", **ALL,
        )  # fmt: skip
        torch.autograd.grad(result.loss.sum(), leaves)
    # Besides the gradient of the weight only what has a few rows; whole logits are 16 times that.
    assert max(shape.numel() for shape in recorder.made) == inputs[1].numel()


def test_dense_makes_the_gradient_and_nothing_as_large(monkeypatch):
    monkeypatch.setattr(positions, "CHUNK", 5 * 40)
    student, teacher = torch.randn(2, 50, 40)
    student.requires_grad_()
    with Recorder() as recorder:
        result = token_distillation_loss(
            student, teacher, torch.randint(40, (50,)), backend="torch", **ALL
        )
        torch.autograd.grad(result.loss, student)
    assert sum(shape.numel() >= student.numel() for shape in recorder.made) == 1


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_frozen_parts_cost_no_work(needed, reduction):
    inputs, bias = linear_call()
    leaves = learned(inputs, bias, needed)
    grads = []
    for backend in ("reference", "torch"):
        with Recorder() as recorder:
            result = linear_token_distillation_loss(
                *inputs, student_bias=bias, reduction=reduction, backend=backend, **ALL
            )
            grads.append(torch.autograd.grad(result.loss.sum(), leaves))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
    made = set(recorder.made)
    assert (inputs[1].shape in made) == needed[1]
    forward = 2 if reduction == "sum" else 4  # logits of both models are made once, or twice
    assert len(recorder.products) <= forward + needed[0] + needed[1]


def test_nothing_learns():
    inputs, bias = linear_call()
    with Recorder() as recorder:
        result = linear_token_distillation_loss(*inputs, student_bias=bias, backend="torch", **ALL)
    assert not result.loss.requires_grad and len(recorder.products) <= 2
    with torch.no_grad():
        learned(inputs, bias)
        quiet = linear_token_distillation_loss(*inputs, student_bias=bias, backend="torch", **ALL)
    assert not quiet.loss.requires_grad and torch.equal(quiet.loss, result.loss)


def test_padding_costs_no_products():
    inputs, bias = linear_call()
    learned(inputs, bias)
    inputs[4][7:] = -100
    with Recorder() as recorder:
        linear_token_distillation_loss(*inputs, backend="torch", **ALL).loss.backward()
    assert recorder.products
    assert all(7 in (args[-2].shape + args[-1].shape) for args in recorder.products)


@pytest.mark.parametrize("rows", [33, 50, 64])
def test_products_in_half_precision_have_a_multiple_of_32_rows(rows):
    inputs, bias = linear_call(rows=rows, dtype=torch.bfloat16)
    learned(inputs, bias)
    with Recorder() as recorder:
        linear_token_distillation_loss(*inputs, backend="torch", **ALL).loss.backward()
    assert recorder.products
    assert all(64 in (args[-2].shape + args[-1].shape) for args in recorder.products)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_gradients_repeat_and_scale(reduction):
    inputs, bias = linear_call()
    leaves = learned(inputs, bias)
    results = [
        linear_token_distillation_loss(
            *inputs, student_bias=bias, reduction=reduction, backend="torch", **ALL
        )
        for _ in range(2)
    ]
    first = torch.autograd.grad(results[0].loss.sum(), leaves, retain_graph=True)
    kept = [each.clone() for each in first]
    again = torch.autograd.grad(results[0].loss.sum() * 3, leaves, retain_graph=True)
    other = torch.autograd.grad(results[1].loss.sum() * 3, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, other, strict=True))
    torch.testing.assert_close(again, tuple(3 * each for each in first))


def test_gradients_add_up_in_leaves():
    inputs, bias = linear_call()
    leaves = learned(inputs, bias)
    for _ in range(3):
        linear_token_distillation_loss(
            *inputs, student_bias=bias, backend="torch", **ALL
        ).loss.backward()
    summed = [leaf.grad for leaf in leaves]
    loss = linear_token_distillation_loss(*inputs, student_bias=bias, backend="torch", **ALL).loss
    once = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(summed, [3 * each for each in once])


def test_tied_output_weight():
    inputs, _ = linear_call()
    weight, ids = inputs[1].requires_grad_(), torch.randint(40, (50,))
    grads = []
    for backend in ("reference", "torch"):
        loss = linear_token_distillation_loss(
            F.embedding(ids, weight).tanh(), *inputs[1:], backend=backend, **ALL
        ).loss
        grads += torch.autograd.grad(loss, weight)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_a_component_alone_has_no_gradient_and_unused_losses_are_free():
    student = torch.randn(4, 9, requires_grad=True)
    result = token_distillation_loss(
        student, torch.randn(4, 9), torch.randint(9, (4,)), backend="torch", **ALL
    )
    assert not result.kd.requires_grad
    (student.sum() + 0 * result.kd).backward()
    assert torch.equal(student.grad, torch.ones(4, 9))


def test_inputs_are_left_alone_whatever_their_strides():
    torch.manual_seed(0)
    student = torch.randn(9, 3, 4).permute(2, 1, 0)  # (4, 3, 9)
    teacher = torch.randn(4, 6, 9)[:, ::2]
    target = torch.randint(9, (3, 4)).t()
    mask = torch.rand(4, 3) < 0.7
    copies = [each.clone() for each in (student, teacher, target, mask)]
    grads = []
    for backend in ("reference", "torch"):
        leaf = student.detach().requires_grad_()
        loss = token_distillation_loss(
            leaf, teacher, target, mask=mask, backend=backend, **ALL
        ).loss
        grads += torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)
    for given, copy in zip((student, teacher, target, mask), copies, strict=True):
        assert torch.equal(given, copy)


@pytest.mark.parametrize("form", ["dense", "linear"])
def test_a_second_order_gradient_is_refused(form):
    inputs, _ = linear_call()
    if form == "dense":
        leaf = torch.randn(50, 40, requires_grad=True)
        result = token_distillation_loss(
            leaf, torch.randn(50, 40), inputs[4], backend="torch", **ALL
        )
    else:
        leaf = inputs[0].requires_grad_()
        result = linear_token_distillation_loss(*inputs, backend="torch", **ALL)
    (gradient,) = torch.autograd.grad(result.loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second-order gradient; use backend='reference'"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_never_waits_for_the_device(sparse, reduction):
    # Tensors on this device have no values: what would wait for one is an error.
    with torch.device("meta"):
        hidden = torch.empty(2, 5, 4, requires_grad=True)
        weight, bias = torch.empty(300, 4, requires_grad=True), torch.empty(300, requires_grad=True)
        teacher = [torch.empty(2, 5, 8), torch.empty(300, 8)]
        if sparse:
            ids = torch.empty(2, 5, 7, dtype=torch.int64)
            teacher = [SparseTeacher(ids, torch.empty(2, 5, 7), "spread"), None]
        target, mask = torch.empty(2, 5, dtype=torch.int64), torch.empty(2, 5, dtype=torch.bool)
    call = {"mask": mask, "reduction": reduction, "student_temperature": 2, "backend": "torch"}
    result = linear_token_distillation_loss(
        hidden, weight, *teacher, target, student_bias=bias, return_prediction=True, **call, **ALL
    )
    result.loss.sum().backward()
    assert result.loss.shape == ((2, 5) if reduction == "none" else ())
    assert hidden.grad.shape == hidden.shape and weight.grad.shape == weight.shape
    logits = torch.empty(2, 5, 300, device="meta", requires_grad=True)
    dense = teacher[0] if sparse else logits.detach()
    token_distillation_loss(logits, dense, target, **call, **ALL).loss.sum().backward()
    assert logits.grad.shape == logits.shape


def test_positions_that_do_not_count_on_a_device(monkeypatch):
    # Where values cannot be read, every position is computed and its gradient multiplied by 0.
    torch.manual_seed(0)
    inputs, bias = linear_call(dtype=torch.float64)
    leaves = learned(inputs, bias)
    mask = torch.rand(50) < 0.6
    inputs[0].data[~mask] = torch.nan
    inputs[2][~mask] = torch.inf
    inputs[4][~mask] = 99
    results = []
    for masks in (False, True):
        if masks:
            monkeypatch.setattr(positions, "at_hand", lambda _: False)
            monkeypatch.setattr(numerics, "at_hand", lambda _: False)
        for reduction in ("sum", "mean", "none"):
            result = linear_token_distillation_loss(
                *inputs, student_bias=bias, mask=mask, reduction=reduction, backend="torch",
                return_prediction=True, **ALL,
            )  # fmt: skip
            upstream = torch.arange(50.0).double() if reduction == "none" else None
            results.append((*result, *torch.autograd.grad(result.loss, leaves, upstream)))
    torch.testing.assert_close(results[3:], results[:3], rtol=1e-12, atol=1e-12)
