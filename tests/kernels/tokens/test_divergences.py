"""The fused divergences and the entropy against the reference."""

import math

import pytest
import torch
from fastkd_kernels.tokens import launch
from fastkd_kernels.tokens.settings import FORMS
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import (
    BackendUnavailable,
    SparseTeacher,
    linear_token_distillation_loss,
    token_distillation_loss,
    watching,
)
from fastkd.functional.calls import SERVED
from tests.kernels.tokens_compare import DEVICE, UPSTREAM, assert_as_exact_as_reference, run

pytestmark = pytest.mark.usefixtures("on_the_device")

INF = math.inf
OTHERS = FORMS[1:]
BETAS = {"jsd": 0.3, "skew_kl": 0.02, "skew_reverse_kl": 0.1}


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", OTHERS)
def test_alone_and_beside_everything(form, dtype):
    student, teacher = (drawn(2, 2, 13, seed=seed, dtype=dtype) for seed in (1, 2))
    target, loss = torch.tensor([[3, 0], [12, 7]]), token_distillation_loss
    options = {"kd_weight": 1.5, "divergence": form, "beta": BETAS.get(form)}
    assert_as_exact_as_reference(loss, [student], teacher, target, ce_weight=0.0, **options)
    options |= {"ce_weight": 0.7, "rank_weight": 0.4, "top_k": 3, "label_smoothing": 0.1}
    options |= {"student_temperature": 2.0, "teacher_temperature": 0.7, "reduction": "mean"}
    mask = torch.tensor([[True, False], [True, True]])
    assert_as_exact_as_reference(loss, [student], teacher, target, mask=mask, **options)


@pytest.mark.parametrize("form", OTHERS)
def test_rows_of_several_blocks(form):
    student, teacher = (drawn(2, 2600, seed=seed) for seed in (5, 6))
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, torch.tensor([2599, 1]), ce_weight=0.5,
        kd_weight=1.0, divergence=form, beta=BETAS.get(form), reduction="none",
    )  # fmt: skip


@pytest.mark.parametrize("form", OTHERS)
def test_linear(form):
    hidden, weight, bias = drawn(5, 4, seed=1), drawn(11, 4, seed=2), drawn(11, seed=3)
    theirs = drawn(5, 3, seed=4), drawn(11, 3, seed=5)

    def loss(hidden, weight, bias, *rest, **options):
        return linear_token_distillation_loss(hidden, weight, *rest, student_bias=bias, **options)

    assert_as_exact_as_reference(
        loss, [hidden, weight, bias], *theirs, torch.arange(5), ce_weight=0.5, kd_weight=0.5,
        divergence=form, beta=BETAS.get(form), reduction="mean",
    )  # fmt: skip


EDGES = [1e-30, 1e-12, 1e-6, 1e-4, 1e-3, 0.05]


@pytest.mark.parametrize("beta", [*EDGES, *(1 - edge for edge in EDGES if edge > 1e-15)])
@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_jsd_near_its_ends(beta, scale):
    """Not by plain PyTorch beside, which has no digit left of a β of 1e-6: of the size of the value
    itself, which is that of β, each row is right to a few units of float32."""
    student, teacher = scale * drawn(4, 40, seed=1), scale * drawn(4, 40, seed=2)
    student[1, 3] = teacher[2, 5] = student[3, 7] = teacher[3, 7] = -INF
    given = {"ce_weight": 0.0, "kd_weight": 1.0, "divergence": "jsd", "beta": beta}
    found, gradient = run(
        token_distillation_loss, "triton", [student], teacher, reduction="none", **given
    )
    exact, wanted = run(
        token_distillation_loss, "reference", [student.double()], teacher.double(),
        reduction="none", **given,
    )  # fmt: skip
    # A log-probability of size L is known to L/2 units, and so is what it weighs.
    log_q = teacher.double().log_softmax(-1)
    least = min(beta, 1 - beta)
    depth = log_q.where(log_q > -INF, 0).abs().max().item() - math.log(least)
    units = 2 * depth * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found.kd.double(), exact.kd, rtol=units, atol=0)
    # p·(share − Σ p·share) of shares of that size.
    size = wanted[0].abs().amax(-1) + least * UPSTREAM * torch.arange(1, 5)
    assert ((gradient[0].double() - wanted[0]).abs().amax(-1) <= units * size).all()


@pytest.mark.parametrize("form", ["skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("edge", [1e-4, 1e-3, 1e-2])
def test_skewed_forms_near_one(form, edge):
    """Of the size of (1 − β)², and sums of terms of the size of 1 − β."""
    student, teacher = drawn(4, 40, seed=1), drawn(4, 40, seed=2)
    student[1, 3] = teacher[2, 5] = student[3, 7] = teacher[3, 7] = -INF
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, ce_weight=0.0, kd_weight=1 / edge,
        divergence=form, beta=1 - edge, reduction="none",
    )  # fmt: skip


@pytest.mark.parametrize("form", ["skew_kl", "skew_reverse_kl"])
def test_skewed_forms_near_one_in_float16(form):
    """A gradient of the size of (1 − β)² is kept off float16's subnormals."""
    student, teacher = (drawn(4, 10, seed=seed, dtype=torch.float16) for seed in (1, 2))
    given = {"ce_weight": 0.0, "kd_weight": 1.0, "divergence": form, "beta": 1 - 1e-4}
    gradients = []
    for backend, dtype in (("triton", torch.float16), ("reference", torch.float64)):
        learned = student.to(dtype).requires_grad_()
        loss = token_distillation_loss(learned, teacher.to(dtype), backend=backend, **given).loss
        (gradient,) = torch.autograd.grad(loss * 2.0**24, learned)
        gradients.append(gradient.double())
    size = gradients[1].abs().amax(-1, keepdim=True)
    unit = torch.finfo(torch.float16).eps
    assert ((gradients[0] - gradients[1]).abs() <= unit * (gradients[1].abs() + size / 64)).all()


@pytest.mark.parametrize("form", ["skew_kl", "skew_reverse_kl"])
def test_skewed_forms_near_one_where_the_teacher_bans_what_is_likely(form):
    student, teacher = torch.zeros(1, 3), torch.tensor([[-INF, 0.5, 0.0]])
    student[0, 0] = 3.0
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, ce_weight=0.0, kd_weight=20.0,
        divergence=form, beta=0.95, reduction="none",
    )  # fmt: skip


def test_jsd_goes_to_kl_with_its_weight():
    student, teacher = drawn(3, 13, seed=1), drawn(3, 13, seed=2)

    def value(form, beta=None):
        return token_distillation_loss(
            student, teacher, ce_weight=0.0, kd_weight=1.0, divergence=form, beta=beta,
            reduction="none", backend="triton",
        ).kd  # fmt: skip

    torch.testing.assert_close(value("jsd", 1e-9) / 1e-9, value("kl"), rtol=1e-5, atol=0)
    near = value("jsd", 1 - 1e-9) / (1 - (1 - 1e-9))
    torch.testing.assert_close(near, value("reverse_kl"), rtol=1e-5, atol=0)


def test_a_beta_below_float32_is_left_to_torch():
    given = drawn(3, 13, seed=1), drawn(3, 13, seed=2), torch.arange(3)

    def losses(backend, weight=1.0):
        options = {"ce_weight": 1.0, "kd_weight": weight, "divergence": "jsd", "beta": 1e-31}
        with watching.pretending(watching.Pretence(fused=True)):
            return token_distillation_loss(*given, **options, backend=backend)

    with pytest.raises(BackendUnavailable, match="a beta of 1e-31 is below what float32"):
        losses("triton")
    assert losses("auto") == losses("torch")
    assert losses("triton", weight=0.0).ce > 0


@pytest.mark.parametrize("form", OTHERS)
def test_banned_ids_and_rows_with_nothing_to_compare(form):
    nothing, some = torch.full((4,), -INF), torch.arange(4.0)
    some_banned = torch.tensor([0.0, -INF, 1.0, 2.0])
    student = torch.stack([nothing, nothing, some, some_banned, some_banned, some])
    teacher = torch.stack([nothing, some, nothing, some_banned, some, some_banned])
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, ce_weight=0.0, kd_weight=1.0,
        divergence=form, beta=BETAS.get(form), reduction="none",
    )  # fmt: skip


@pytest.mark.parametrize("form", OTHERS)
def test_nothing_where_both_are_equal(form):
    logits = drawn(3, 13, seed=7)
    found = token_distillation_loss(
        logits, logits.clone(), ce_weight=0.0, kd_weight=1.0, divergence=form, backend="triton"
    )
    assert found.kd == 0


@given(
    form=st.sampled_from(OTHERS),
    beta=st.sampled_from([1e-3, 0.01, 0.1, 0.5, 0.9, 0.99]),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),
    banned=st.sampled_from([0.0, 0.2]),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
@settings(max_examples=12, deadline=None)
def test_drawn(form, beta, seed, scale, banned, temperature):
    # Enough rows that the error of plain PyTorch is more than one row's luck.
    student, teacher = (drawn(12, 9, seed=seed + side) * scale for side in (0, 1))
    for side in (student, teacher):
        side[torch.rand(side.shape, generator=torch.Generator().manual_seed(seed)) < banned] = -INF
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, torch.arange(12) % 9, ce_weight=0.3,
        kd_weight=1.0, divergence=form, beta=beta if form in BETAS else None,
        student_temperature=temperature, reduction="none",
    )  # fmt: skip


@pytest.mark.parametrize("teacher", ["none", "dense", "tail"])
def test_entropy(teacher):
    student = drawn(3, 2100, seed=1)
    theirs = drawn(3, 2100, seed=2)
    given = {"none": None, "dense": theirs, "tail": listed_of(theirs, 20, "tail")}[teacher]
    taught = float(teacher != "none")
    for weight, temperature in ((0.3, 1.0), (-0.2, 2.0)):
        assert_as_exact_as_reference(
            token_distillation_loss, [student], given, torch.tensor([3, 0, 2099]), ce_weight=0.5,
            kd_weight=taught, rank_weight=0.4 * taught, top_k=3, entropy_weight=weight,
            student_temperature=temperature, label_smoothing=0.1, reduction="mean",
        )  # fmt: skip


def listed_of(logits: torch.Tensor, amount: int, rest: str) -> SparseTeacher:
    """The likeliest ids, the first of them once more as padding where that is allowed."""
    values, ids = logits.log_softmax(-1).topk(amount)
    if rest != "spread":
        values = torch.cat([torch.full_like(values[..., :1], -INF), values], -1)
        ids = torch.cat([ids[..., :1], ids], -1)
    return SparseTeacher(ids, values.float(), rest)


LISTS = [
    (rest, form)
    for rest in ("spread", "renormalize", "tail")
    for form in FORMS
    if form in SERVED[rest] and (form, rest) not in {("kl", "spread"), ("kl", "renormalize")}
]


@pytest.mark.parametrize(("rest", "form"), LISTS)
def test_lists(rest, form):
    student, teacher = drawn(2, 2, 13, seed=1), drawn(2, 2, 13, seed=2)
    student[1, 0, 3] = -INF
    loss, given = token_distillation_loss, listed_of(teacher, 4, rest)
    options = {"kd_weight": 1.5, "divergence": form, "beta": BETAS.get(form)}
    assert_as_exact_as_reference(loss, [student], given, None, ce_weight=0.0, **options)
    options |= {"ce_weight": 0.7, "rank_weight": 0.4, "top_k": 3, "label_smoothing": 0.1}
    options |= {"student_temperature": 2.0, "teacher_temperature": 0.7, "reduction": "mean"}
    assert_as_exact_as_reference(
        loss, [student], given, torch.tensor([[3, 0], [12, 7]]), entropy_weight=-0.2,
        mask=torch.tensor([[True, False], [True, True]]), return_prediction=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("rest", ["spread", "tail"])
def test_lists_are_written_out_in_bounded_memory(rest, monkeypatch):
    student, teacher = drawn(7, 13, seed=1), listed_of(drawn(7, 13, seed=2), 4, rest)
    options = {"ce_weight": 0.4, "kd_weight": 1.0, "divergence": "jsd", "reduction": "mean"}
    arguments = ([student], teacher, torch.arange(7))
    for mask in (None, torch.tensor([True, False] * 3 + [True])):
        whole = run(token_distillation_loss, "triton", *arguments, mask=mask, **options)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "WRITTEN_BYTES", 4 * 13 * 2)  # two rows
            parts = run(token_distillation_loss, "triton", *arguments, mask=mask, **options)
        torch.testing.assert_close(parts, whole, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_tail_that_holds_nearly_nothing(form):
    """What is left of p is no difference of sums: it has digits where 1 − Σ has none."""
    student = drawn(3, 13, seed=1)
    student[:, 4:] -= 40.0
    ids = torch.arange(4).expand(3, 4).contiguous()
    values = drawn(3, 4, seed=3).log_softmax(-1) - 1e-3
    assert_as_exact_as_reference(
        token_distillation_loss, [student], SparseTeacher(ids, values, "tail"), ce_weight=0.0,
        kd_weight=1.0, divergence=form, beta=BETAS.get(form), reduction="none",
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_tail_that_the_student_bans(form):
    student = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.5]])
    student = torch.cat([student, torch.full((2, 3), -INF)], 1)
    log_q = torch.tensor([[0.5, 0.1, 0.3], [0.2, 0.2, 0.2]]).log()
    teacher = SparseTeacher(torch.arange(3).repeat(2, 1), log_q, "tail")
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, ce_weight=0.0, kd_weight=1.0,
        divergence=form, beta=BETAS.get(form), reduction="none",
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_tail_of_no_id(form):
    """The missing mass of a list of all is a rounding, which KL would find banned."""
    student, teacher = drawn(4, 13, seed=1), drawn(4, 13, seed=2)
    ids = torch.arange(13).expand(4, 13).contiguous()
    listed = SparseTeacher(ids, teacher.log_softmax(-1) - 1e-6, "tail")
    found = assert_as_exact_as_reference(
        token_distillation_loss, [student], listed, ce_weight=0.0, kd_weight=1.0,
        divergence=form, beta=BETAS.get(form), reduction="none",
    )  # fmt: skip
    assert found.kd.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_lists_of_linear_students(form):
    hidden, weight = drawn(5, 4, seed=1), drawn(11, 4, seed=2)
    given = listed_of(drawn(5, 11, seed=4), 3, "tail")
    assert_as_exact_as_reference(
        linear_token_distillation_loss, [hidden, weight], given, None, torch.arange(5),
        ce_weight=0.5, kd_weight=0.5, divergence=form,
        beta=BETAS.get(form), entropy_weight=0.1, reduction="mean",
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_lists_and_rows_with_nothing_to_compare(form):
    nothing, some = torch.full((5,), -INF), torch.arange(5.0)
    banned = torch.tensor([0.0, -INF, 1.0, 2.0, -INF])
    student = torch.stack([nothing, nothing, some, banned, banned, some])
    empty, full = torch.full((2,), -INF), torch.tensor([0.6, 0.3]).log()
    values = torch.stack([empty, full, empty, full, full, torch.tensor([0.7, 0.3]).log()])
    ids = torch.tensor([[0, 2]] * 4 + [[1, 2], [0, 1]])
    assert_as_exact_as_reference(
        token_distillation_loss, [student], SparseTeacher(ids, values, "tail"), ce_weight=0.0,
        kd_weight=1.0, entropy_weight=0.3, divergence=form, beta=BETAS.get(form),
        reduction="none",
    )  # fmt: skip
