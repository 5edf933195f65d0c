"""Scales and caps of logits, and vocabularies that agree in their first ids only, on the kernels.

The rule of `tokens_compare`: as near to float64 as the reference is in the same type.
"""

import math

import pytest
import torch

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from fastkd.functional.calls import SERVED
from tests.kernels.tokens_compare import DEVICE, assert_as_exact_as_reference

pytestmark = pytest.mark.usefixtures("on_the_device")

INF = math.inf
FORMS = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
BETAS = {"jsd": 0.3, "skew_kl": 0.02, "skew_reverse_kl": 0.1}
WEIGHTS = {"ce_weight": 0.3, "kd_weight": 0.7, "rank_weight": 0.4, "top_k": 3}
SCORED = {
    "scaled": {"student_logit_scale": 0.4, "teacher_logit_scale": 1.7},
    "capped": {"student_soft_cap": 3.0, "teacher_soft_cap": 2.5},
    "both": {
        "student_logit_scale": 0.5, "student_soft_cap": 30.0,
        "teacher_logit_scale": 2.0, "teacher_soft_cap": 5.0,
    },
}  # fmt: skip


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scores", SCORED)
def test_alone_and_beside_everything(scores, dtype):
    student, teacher = (drawn(2, 2, 13, seed=seed, dtype=dtype) for seed in (1, 2))
    student[0, 1, 4] = teacher[0, 0, 2] = -INF
    target, loss = torch.tensor([[3, 0], [12, 7]]), token_distillation_loss
    options = SCORED[scores]
    ce = {"ce_weight": 1.0, "kd_weight": 0.0, "return_prediction": True}
    assert_as_exact_as_reference(loss, [student], None, target, **ce, **options)
    kl = {"ce_weight": 0.0, "kd_weight": 1.0}
    student[0, 1, 4] = 0.0
    assert_as_exact_as_reference(loss, [student], teacher, **kl, **options)
    assert_as_exact_as_reference(
        loss, [student], teacher, target, **WEIGHTS, **options, label_smoothing=0.1,
        entropy_weight=-0.2, divergence="jsd", student_temperature=2.0, teacher_temperature=0.7,
        mask=torch.tensor([[True, False], [True, True]]), reduction="mean",
        return_prediction=True,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_divergence(form):
    student, teacher = drawn(3, 13, seed=1), drawn(3, 15, seed=2)
    options = {"divergence": form, "beta": BETAS.get(form), "vocabulary": 11} | SCORED["both"]
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, torch.tensor([3, 0, 10]), **WEIGHTS,
        entropy_weight=0.1, reduction="none", **options,
    )  # fmt: skip


def test_a_cap_is_exact_where_logits_are_small_and_where_they_are_large():
    for scale in (1e-4, 0.5, 0.56, 1.0, 20.0, 1e4):
        student, teacher = drawn(4, 40, seed=1) * scale, drawn(4, 40, seed=2) * scale
        assert_as_exact_as_reference(
            token_distillation_loss, [student], teacher, torch.arange(4), ce_weight=1.0,
            kd_weight=1.0, student_soft_cap=2.0, teacher_soft_cap=2.0, reduction="none",
        )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_nothing_where_both_are_equal(form):
    logits = drawn(3, 13, seed=7)
    found = token_distillation_loss(
        logits, logits.clone(), ce_weight=0.0, kd_weight=1.0, divergence=form, vocabulary=11,
        student_soft_cap=2.0, teacher_soft_cap=2.0, backend="triton",
    )  # fmt: skip
    assert found.kd.abs() < 1e-6
    assert form == "kl" or found.kd == 0


# Ids beyond the compared ones.


@pytest.mark.parametrize("compared", [1000, 1024, 1040, 2500])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_blocks_of_both_parts(compared, reduction):
    """Predictions and smoothing mass in either part, targets in the compared one; the larger one in
    either."""
    student, teacher = drawn(4, 2600, seed=5), drawn(4, compared + 7, seed=6)
    student[0, :compared] -= 50.0
    student[1, compared:] -= 200.0
    student[2, 2599] = 40.0
    common = {"return_prediction": True, "reduction": reduction, "vocabulary": compared}
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, torch.tensor([3, 0, 999, 17]), ce_weight=0.5,
        kd_weight=1.0, label_smoothing=0.1, student_temperature=1.5, **common,
    )  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("tempered", [1.0, 2.0])
def test_banned_ids_in_both_parts(smoothing, tempered):
    nothing, some = torch.full((6,), -INF), torch.arange(6.0)
    first, last, few = (some.clone() for _ in range(3))
    first[:4], last[4:], few[1::2] = -INF, -INF, -INF
    student = torch.stack([nothing, first, last, few, some])
    teacher = some[:4].expand(5, 4).contiguous()
    for ce_weight in (0.5, 0.0):
        assert_as_exact_as_reference(
            token_distillation_loss, [student], teacher, torch.tensor([0, 1, 2, 2, 3]),
            ce_weight=ce_weight, kd_weight=1.0, entropy_weight=0.3, label_smoothing=smoothing,
            student_temperature=tempered, vocabulary=4, divergence="jsd", reduction="none",
        )  # fmt: skip


def test_linear_and_a_wider_teacher():
    hidden, weight, bias = drawn(5, 4, seed=1), drawn(11, 4, seed=2), drawn(11, seed=3)
    theirs = drawn(5, 3, seed=4), drawn(14, 3, seed=5)

    def loss(hidden, weight, bias, *rest, **options):
        return linear_token_distillation_loss(hidden, weight, *rest, student_bias=bias, **options)

    for reduction in ("mean", "none"):
        for form in ("kl", "tvd"):
            assert_as_exact_as_reference(
                loss, [hidden, weight, bias], *theirs, torch.arange(5),
                teacher_bias=drawn(14, seed=6), **WEIGHTS, **SCORED["both"], vocabulary=9,
                divergence=form, reduction=reduction,
            )  # fmt: skip


LISTS = [(rest, form) for rest, forms in SERVED.items() for form in forms]


def listed_of(logits: torch.Tensor, amount: int, rest: str) -> SparseTeacher:
    values, ids = logits.log_softmax(-1).topk(amount)
    return SparseTeacher(ids, values.float(), rest)


@pytest.mark.parametrize(("rest", "form"), LISTS)
def test_lists(rest, form):
    student, teacher = drawn(4, 13, seed=1), listed_of(drawn(4, 10, seed=2), 4, rest)
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, torch.tensor([3, 0, 9, 7]), **WEIGHTS,
        **SCORED["both"], vocabulary=10, divergence=form, beta=BETAS.get(form),
        entropy_weight=0.2, label_smoothing=0.1, student_temperature=2.0,
        teacher_temperature=0.7, reduction="none", return_prediction=True,
    )  # fmt: skip


def test_an_operator_that_is_traced_has_all_of_it():
    """Numbers are how settings pass through an operator."""
    from fastkd_kernels.tokens.settings import TokenSettings

    chosen = TokenSettings(
        0.3, 0.7, 0.4, 3, 0.1, 2.0, 0.7, -0.2, "tail", "jsd", 0.3, 0.5, 2.0, 30.0, None, 11
    )
    assert TokenSettings.unpacked(chosen.packed()) == chosen
