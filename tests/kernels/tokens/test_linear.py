"""The token losses of hidden states in chunks, against the reference."""

import math

import pytest
import torch
from fastkd_kernels.tokens import linear as tokens_linear
from fastkd_kernels.tokens.linear import chunk_rows

from fastkd import linear_token_distillation_loss
from tests.kernels.tokens_compare import DEVICE, assert_as_exact_as_reference, run

pytestmark = pytest.mark.usefixtures("on_the_device")

OPTIONS = {
    "ce_weight": 0.7,
    "kd_weight": 1.5,
    "rank_weight": 0.4,
    "top_k": 3,
    "label_smoothing": 0.1,
    "student_temperature": 2.0,
}


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small multiples of ½: products and sums of them are exact in every type, ties included."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (torch.randint(-3, 4, shape, generator=generator) / 2).to(dtype)


def batch(dtype: torch.dtype = torch.float32):
    """Student (hidden, weight, bias) and teacher, of different widths, and targets."""
    student = [numbers(2, 3, 4, seed=1, dtype=dtype), numbers(11, 4, seed=2, dtype=dtype)]
    teacher = [numbers(2, 3, 6, seed=3, dtype=dtype), numbers(11, 6, seed=4, dtype=dtype)]
    target = torch.arange(6).view(2, 3).masked_fill(torch.arange(3) == 1, -100)
    return student, teacher, target


def with_bias(hidden, weight, bias, *constants, **options):
    return linear_token_distillation_loss(hidden, weight, *constants, student_bias=bias, **options)


@pytest.fixture(params=[None, 4], ids=["one chunk", "chunks of 4 rows"])
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(tokens_linear, "chunk_rows", lambda rows, _: request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_against_the_reference(dtype, reduction, chunks):
    student, teacher, target = batch(dtype)
    assert_as_exact_as_reference(
        linear_token_distillation_loss, student, *teacher, target, reduction=reduction,
        return_prediction=True, **OPTIONS,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_biases(dtype, chunks):
    student, teacher, target = batch(dtype)
    bias = numbers(11, seed=5, dtype=dtype)
    bias[4] = -math.inf
    teacher_bias = bias.flip(0).masked_fill(bias == -math.inf, -math.inf)
    _, gradients = run(
        with_bias, "triton", [*student, bias], *teacher, target.clamp(0, 3),
        teacher_bias=teacher_bias, reduction="mean", **OPTIONS,
    )  # fmt: skip
    assert gradients[2][4] == 0 and torch.isfinite(gradients[1]).all()
    assert_as_exact_as_reference(
        with_bias, [*student, bias], *teacher, target.clamp(0, 3), teacher_bias=teacher_bias,
        reduction="mean", **OPTIONS,
    )  # fmt: skip


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_frozen_parts_get_no_gradient_and_the_others_the_same(frozen, chunks):
    student, teacher, target = batch()
    parts = [*student, numbers(11, seed=5)]
    _, expected = run(with_bias, "triton", parts, *teacher, target, **OPTIONS)
    leaves = [x.clone().requires_grad_(index not in frozen) for index, x in enumerate(parts)]
    losses = with_bias(*leaves, *teacher, target, backend="triton", **OPTIONS)
    (3 * losses.loss).backward()
    for index, (leaf, gradient) in enumerate(zip(leaves, expected, strict=True)):
        assert leaf.grad is None if index in frozen else torch.equal(leaf.grad, gradient)


def test_nothing_trained_needs_no_gradient():
    student, teacher, target = batch()
    losses = linear_token_distillation_loss(*student, *teacher, target, backend="triton", **OPTIONS)
    assert not losses.loss.requires_grad


def test_a_weight_tied_to_the_embedding_collects_both_gradients():
    student, teacher, target = batch()
    table = student[1].clone().requires_grad_()
    hidden = table[:6].reshape(2, 3, 4) + student[0]
    grads = [
        torch.autograd.grad(
            linear_token_distillation_loss(
                hidden, table, *teacher, target, backend=backend, **OPTIONS
            ).loss,
            table,
            retain_graph=True,
        )[0]
        for backend in ("reference", "triton")
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["ce", "kd"])
def test_one_component_alone(weights, chunks):
    student, teacher, target = batch()
    teacher = teacher if weights[1] else [None, None]
    assert_as_exact_as_reference(
        linear_token_distillation_loss, student, *teacher, target, ce_weight=weights[0],
        kd_weight=weights[1],
    )  # fmt: skip


def test_rows_that_do_not_count_may_hold_anything(chunks):
    student, teacher, target = batch()
    clean, expected = run(
        linear_token_distillation_loss, "triton", student, *teacher, target, reduction="mean",
        **OPTIONS,
    )  # fmt: skip
    student[0][:, 1] = math.nan
    teacher[0][:, 1] = math.inf
    losses, gradients = run(
        linear_token_distillation_loss, "triton", student, *teacher, target, reduction="mean",
        **OPTIONS,
    )  # fmt: skip
    assert torch.equal(losses.loss, clean.loss)
    for gradient, same in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, same)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_multiplies_in_its_type_and_returns_gradients_in_the_inputs(reduction):
    student, teacher, target = batch()

    def losses(backend, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in student]
        found = linear_token_distillation_loss(
            *leaves, *(x.to(dtype) for x in teacher), target, backend=backend,
            reduction=reduction, **OPTIONS,
        )  # fmt: skip
        return found.loss, torch.autograd.grad(found.loss.sum(), leaves)

    half, _ = losses("triton", torch.float16)
    with torch.autocast(DEVICE, torch.float16):
        ours, gradients = losses("triton", torch.float32)
    assert torch.equal(ours, half)
    assert [x.dtype for x in gradients] == [torch.float32, torch.float32]
    _, truth = losses("reference", torch.float64)
    for gradient, exact in zip(gradients, truth, strict=True):
        # Each of a row's products rounds to float16; the reference's gradient is not rounded.
        error = (gradient - exact).abs().max()
        assert error <= 4 * torch.finfo(torch.float16).eps * exact.abs().max()


def test_gradients_are_summed_in_float32(monkeypatch):
    """One row adds ½ to a weight and seven add 2⁻¹³ each, which float16 would lose one by one."""
    monkeypatch.setattr(tokens_linear, "chunk_rows", lambda rows, _: 1)
    hidden = torch.tensor([[1.0]] + [[2.0**-12]] * 7, dtype=torch.float16)
    weight = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(8, dtype=torch.long)
    losses = linear_token_distillation_loss(
        hidden, weight, None, None, target, ce_weight=1.0, kd_weight=0.0, backend="triton"
    )
    losses.loss.backward()
    expected = torch.tensor(0.5 + 7 * 2.0**-13, dtype=torch.float16).item()
    assert expected > 0.5
    assert weight.grad.flatten().tolist() == [-expected, expected]


def test_chunks_hold_all_of_few_rows_and_a_bounded_part_of_many():
    for vocabulary in (8_000, 32_000, 131_072):
        for itemsize in (2, 4):
            per_row = 2 * vocabulary * itemsize
            for rows in (1, 100, 512, 4096, 16_384, 1_000_000):
                size = chunk_rows(rows, per_row)
                assert size * per_row <= tokens_linear.CHUNK_BYTES or size == 128
                assert size == rows or size % 128 == 0
                if rows * per_row <= tokens_linear.CHUNK_BYTES // 2:
                    assert size == rows
    assert chunk_rows(10, 1 << 40) == 10
