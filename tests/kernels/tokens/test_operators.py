"""The token operators as citizens of PyTorch: registration, compilation, and their backward."""

from types import SimpleNamespace

import pytest
import torch
from fastkd_kernels.tokens import launch as tokens_launch
from fastkd_kernels.tokens import linear as tokens_linear
from fastkd_kernels.tokens import operators as tokens
from fastkd_kernels.tokens.linear import linear_token_losses_op
from fastkd_kernels.tokens.operators import dense_token_losses_op
from fastkd_kernels.tokens.settings import TokenSettings

from fastkd import linear_token_distillation_loss, token_distillation_loss
from tests.kernels.tokens_compare import DEVICE

pytestmark = pytest.mark.usefixtures("on_the_device")

OPTIONS = {"ce_weight": 0.5, "kd_weight": 1.0, "backend": "triton"}
SETTINGS = TokenSettings(0.5, 1.0, 0.25, 2, 0.1, 2.0, 1.0).packed()


def batch(dtype: torch.dtype = torch.float32):
    generator = torch.Generator(DEVICE).manual_seed(0)
    student = torch.randn(3, 7, generator=generator).to(dtype).requires_grad_()
    teacher = torch.randn(3, 7, generator=generator).to(dtype)
    return student, teacher, torch.tensor([1, -100, 6])


def linear_batch():
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator).requires_grad_()
    weight = torch.randn(7, 4, generator=generator).requires_grad_()
    teacher = [torch.randn(3, 5, generator=generator), torch.randn(7, 5, generator=generator)]
    return [hidden, weight], teacher, torch.tensor([1, -100, 6])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_registration_of_the_dense_operator(reduction):
    student, teacher, target = batch()
    given = (student.detach(), teacher, None, None, target, target >= 0)
    torch.library.opcheck(dense_token_losses_op, (*given, SETTINGS, reduction, True, True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_registration_of_the_linear_operator(reduction):
    student, teacher, target = linear_batch()
    given = (*(x.detach() for x in student), None, *teacher, None, None, None, target, target >= 0)
    wanted = [True, True, False]
    arguments = (*given, None, SETTINGS, reduction, True, wanted)
    torch.library.opcheck(linear_token_losses_op, arguments)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_compiles_to_one_graph(reduction):
    student, teacher, target = batch()

    def dense(student):
        losses = token_distillation_loss(
            student * 2, teacher, target, reduction=reduction, **OPTIONS
        )
        return losses.loss.sum() * 3

    def linear(hidden, weight):
        losses = linear_token_distillation_loss(
            hidden * 2, weight, *linear_teacher, target, reduction=reduction, **OPTIONS
        )
        return losses.loss.sum() * 3

    trained, linear_teacher, _ = linear_batch()
    for function, leaves in ((dense, [student]), (linear, trained)):
        expected = torch.autograd.grad(function(*leaves), leaves)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for gradient, same in zip(
            torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True
        ):
            torch.testing.assert_close(gradient, same)


def second_order(loss: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no second-order gradient"):
        torch.autograd.grad(sum((x**2).sum() for x in first), leaves)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_second_order_gradients_are_refused(reduction):
    student, teacher, target = batch()
    losses = token_distillation_loss(student, teacher, target, reduction=reduction, **OPTIONS)
    second_order(losses.loss.sum(), [student])
    trained, teacher, target = linear_batch()
    losses = linear_token_distillation_loss(
        *trained, *teacher, target, reduction=reduction, **OPTIONS
    )
    second_order(losses.loss.sum(), trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_a_scaled_loss_has_a_scaled_gradient_however_often_it_is_taken(reduction, dtype):
    student, teacher, target = batch(dtype)
    losses = token_distillation_loss(student, teacher, target, reduction=reduction, **OPTIONS)
    loss = losses.loss.sum()
    once = torch.autograd.grad(loss, student, retain_graph=True)[0]
    kept = once.clone()
    # A power of two, so that no rounding differs.
    scaled = torch.autograd.grad(4 * loss, student, retain_graph=True)[0]
    again = torch.autograd.grad(loss, student, retain_graph=True)[0]
    last = torch.autograd.grad(4 * loss, student)[0]  # in place, as the graph is freed
    assert once.abs().max() > 0
    assert torch.equal(once, kept) and torch.equal(again, once)
    assert torch.equal(scaled, 4 * once) and torch.equal(last, scaled)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradients_of_hidden_states_scale_too(reduction):
    trained, teacher, target = linear_batch()
    losses = linear_token_distillation_loss(
        *trained, *teacher, target, reduction=reduction, **OPTIONS
    )
    loss = losses.loss.sum()
    once = torch.autograd.grad(loss, trained, retain_graph=True)
    again = torch.autograd.grad(4 * loss, trained)
    for gradient, scaled in zip(once, again, strict=True):
        assert torch.equal(scaled, 4 * gradient)


def test_small_gradients_of_float16_are_not_lost_before_a_loss_scale():
    """A mean of 1/2048 probabilities is below float16 until the loss scale multiplies it."""
    student = torch.zeros(4, 2048, dtype=torch.float16).requires_grad_()
    target = torch.zeros(4, dtype=torch.long)
    losses = token_distillation_loss(
        student, None, target, ce_weight=2.0**-12, kd_weight=0.0, reduction="mean",
        backend="triton",
    )  # fmt: skip
    (2.0**16 * losses.loss).backward()
    assert student.grad[0, 1] == 2.0**16 * 2.0**-12 / 2048 / 4


def test_inputs_are_left_as_they_were():
    student, teacher, target = batch()
    trained, linear_teacher, _ = linear_batch()
    mask = torch.tensor([True, True, False])
    inputs = [student, teacher, target, *trained, *linear_teacher, mask]
    copies = [x.detach().clone() for x in inputs]
    for losses in (
        token_distillation_loss(student, teacher, target, mask=mask, **OPTIONS),
        linear_token_distillation_loss(*trained, *linear_teacher, target, mask=mask, **OPTIONS),
    ):
        losses.loss.backward()
    for value, copy in zip(inputs, copies, strict=True):
        assert torch.equal(value, copy)


def test_results_are_bit_equal_twice():
    student, teacher, target = batch()
    losses = [token_distillation_loss(student, teacher, target, **OPTIONS) for _ in range(2)]
    assert torch.equal(losses[0].loss, losses[1].loss)
    gradients = [torch.autograd.grad(found.loss, student)[0] for found in losses]
    assert torch.equal(*gradients)


def test_only_the_loss_is_differentiable():
    student, teacher, target = batch()
    losses = token_distillation_loss(
        student, teacher, target, rank_weight=1.0, top_k=2, return_prediction=True, **OPTIONS
    )
    assert losses.loss.requires_grad
    assert not any(part.requires_grad for part in losses[1:])
    with torch.no_grad():
        assert not token_distillation_loss(student, teacher, target, **OPTIONS).loss.requires_grad


def test_no_gradient_is_computed_where_none_is_recorded(monkeypatch):
    gradients = []
    launch = tokens_launch.launch_rows

    def recorded(*arguments):
        gradients.append(arguments[6])
        launch(*arguments)

    for module in (tokens, tokens_linear):
        monkeypatch.setattr(module, "launch_rows", recorded)
    student, teacher, target = batch()
    trained, linear_teacher, _ = linear_batch()
    with torch.no_grad():
        token_distillation_loss(student, teacher, target, **OPTIONS)
        linear_token_distillation_loss(*trained, *linear_teacher, target, **OPTIONS)
    assert gradients == [None, None]
    token_distillation_loss(student, teacher, target, **OPTIONS)
    assert gradients[-1] is not None


def test_sizes_choose_among_a_few_compilations(monkeypatch):
    """What is compiled in does not follow the rows or the vocabulary."""
    compiled = set()
    planned = tokens_launch._planned

    def recorded(request):
        step = planned(request)
        compiled.add(tuple(sorted(step.constants.items())))
        return SimpleNamespace(launch=lambda *_, **__: None)

    monkeypatch.setattr(tokens_launch, "_planned", recorded)
    for vocabulary in [*range(1, 40), *range(1000, 5000, 500), 32_000, 32_001]:
        for rows in (1, 7):
            logits = torch.zeros(rows, vocabulary)
            token_distillation_loss(logits, logits, torch.zeros(rows).long(), **OPTIONS)
    units = {dict(constants)["UNIT"] for constants in compiled}
    assert units == {1, 2, 4, 8, 16}
    assert len(compiled) <= 2 * len(units)
