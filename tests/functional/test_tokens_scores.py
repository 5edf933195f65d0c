"""Scales and caps of logits, and vocabularies that agree in their first ids only."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import (
    InputError,
    SparseTeacher,
    linear_token_distillation_loss,
    token_distillation_loss,
)

BACKENDS = ("reference", "torch")
WEIGHTS = {"ce_weight": 0.3, "kd_weight": 0.7, "rank_weight": 0.4, "label_smoothing": 0.1}


def scored(logits, scale, cap):
    """The definition, of float64 logits."""
    if cap is None:
        return logits * scale
    return torch.where(logits == -math.inf, logits, cap * torch.tanh(logits * scale / cap))


@st.composite
def cases(draw):
    vocabulary = draw(st.integers(3, 30))
    return {
        "seed": draw(st.integers(0, 2**16)),
        "vocabulary": vocabulary,
        "teacher": draw(st.sampled_from(["dense", "drop", "spread", "renormalize"])),
        "banned": draw(st.sampled_from([0.0, 0.2])),
        "compared": draw(st.sampled_from([None, vocabulary, max(vocabulary // 2, 3)])),
        "more": draw(st.integers(0, 4)),  # ids that the teacher has besides
        "scales": draw(st.sampled_from([(1.0, 1.0), (0.5, 2.0)])),
        "caps": draw(st.sampled_from([(None, None), (3.0, None), (2.0, 4.0)])),
        "temperatures": draw(st.sampled_from([(1.0, 1.0), (2.0, 0.7)])),
        "reduction": draw(st.sampled_from(["sum", "mean", "none"])),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_scores_and_vocabulary_by_hand(backend, case):
    torch.manual_seed(case["seed"])
    n = case["compared"] or case["vocabulary"]
    student = torch.randn(5, case["vocabulary"], dtype=torch.float64) * 3
    student[torch.rand(student.shape) < case["banned"]] = -math.inf
    student.requires_grad_()
    wide = case["vocabulary"] + (case["more"] if case["compared"] else 0)
    teacher = torch.randn(5, wide, dtype=torch.float64) * 3
    target = torch.randint(n, (5,))
    mask = torch.rand(5) < 0.7
    temperatures = dict(
        zip(("student_temperature", "teacher_temperature"), case["temperatures"], strict=True)
    )
    common = {"top_k": 2, "mask": mask, "reduction": case["reduction"], **temperatures}
    (s_scale, t_scale), (s_cap, t_cap) = case["scales"], case["caps"]
    plain = scored(student, s_scale, s_cap)
    if case["teacher"] == "dense":
        given_teacher, plain_teacher = teacher, scored(teacher, t_scale, t_cap)[:, :n]
    else:
        log_probs, ids = teacher[:, :n].log_softmax(-1).topk(3)
        given_teacher = plain_teacher = SparseTeacher(ids, log_probs, case["teacher"])

    found = token_distillation_loss(
        student,
        given_teacher,
        target,
        student_logit_scale=s_scale,
        teacher_logit_scale=t_scale,
        student_soft_cap=s_cap,
        teacher_soft_cap=t_cap,
        vocabulary=case["compared"],
        return_prediction=True,
        backend=backend,
        **WEIGHTS,
        **common,
    )
    ce = token_distillation_loss(
        plain, None, target, backend="reference", **{**WEIGHTS, "kd_weight": 0, "rank_weight": 0},
        **common,
    )  # fmt: skip
    taught = token_distillation_loss(
        plain[:, :n],
        plain_teacher,
        backend="reference",
        **{**WEIGHTS, "ce_weight": 0},
        **common,
    )
    expected = ce.loss + taught.loss
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-9)
    for component, wanted in ((found.ce, ce.ce), (found.kd, taught.kd), (found.rank, taught.rank)):
        torch.testing.assert_close(component, wanted, rtol=1e-9, atol=1e-9)
    prediction = scored(student.detach(), s_scale, s_cap).argmax(-1)
    assert torch.equal(found.prediction[mask], prediction[mask])
    if found.loss.isfinite().all():
        gradients = [
            torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]
            for loss in (found.loss, expected)
        ]
        allowed = student > -math.inf
        torch.testing.assert_close(
            gradients[0][allowed], gradients[1][allowed], rtol=1e-8, atol=1e-9
        )
        assert not gradients[0][~allowed].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_is_dense_of_its_logits(backend, dtype):
    """Different vocabularies, widths and caps; the products themselves are the same."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, dtype=dtype), torch.randn(20, 8, dtype=dtype)
    theirs, their_weight = torch.randn(6, 5, dtype=dtype), torch.randn(23, 5, dtype=dtype)
    target = torch.randint(17, (6,))
    options = {
        "vocabulary": 17, "student_soft_cap": 3.0, "teacher_soft_cap": 2.0,
        "student_logit_scale": 0.5, "top_k": 3, "backend": backend,
    }  # fmt: skip
    hidden.requires_grad_()
    weight.requires_grad_()
    found = linear_token_distillation_loss(
        hidden, weight, theirs, their_weight, target, **WEIGHTS, **options
    )
    expected = token_distillation_loss(
        hidden @ weight.T, theirs @ their_weight.T, target, **WEIGHTS, **options
    )
    tolerance = 1e-10 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=tolerance)
    ours, plain = (
        torch.autograd.grad(result.loss, (hidden, weight)) for result in (found, expected)
    )
    for one, other in zip(ours, plain, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=2 * tolerance)


def test_gradcheck():
    torch.manual_seed(0)
    student = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    teacher, target = torch.randn(4, 9, dtype=torch.float64), torch.randint(5, (4,))

    def loss(student):
        return token_distillation_loss(
            student, teacher, target, ce_weight=1, kd_weight=1, vocabulary=5,
            student_soft_cap=2.0, student_logit_scale=0.7, backend="torch",
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student_soft_cap": 0.0}, "student_soft_cap must be a positive number, not 0.0"),
        ({"teacher_soft_cap": -1.0}, "teacher_soft_cap must be a positive number"),
        ({"student_logit_scale": 0.0}, "student_logit_scale must be a positive number"),
        ({"teacher_logit_scale": math.inf}, "teacher_logit_scale must be a positive number"),
        ({"vocabulary": 0}, "vocabulary must be a positive integer, not 0"),
        ({"vocabulary": 8}, "vocabulary must be at most the student's 7 ids, not 8"),
        ({"vocabulary": None}, "teacher has 6 ids, student 7; vocabulary=n compares the first n"),
        ({"vocabulary": 7}, "vocabulary must be at most the teacher's 6 ids, not 7"),
        ({"vocabulary": 3}, "target must be in 0..2 at counted positions, not 4"),
        ({"vocabulary": 4, "rank_weight": 1.0}, "top_k must be at most the vocabulary's 4"),
    ],
)
def test_refused(change, words):
    student, teacher = torch.zeros(2, 7), torch.zeros(2, 6)
    with pytest.raises(InputError, match=words):
        token_distillation_loss(
            student, teacher, torch.tensor([4, 0]),
            **{"ce_weight": 1.0, "kd_weight": 1.0, "vocabulary": 5, **change},
        )  # fmt: skip


def test_listed_ids_beyond_the_vocabulary_are_refused():
    listed = SparseTeacher(torch.tensor([[0, 5]]), torch.tensor([[-1.0, -1.0]]))
    with pytest.raises(InputError, match=r"ids must be in 0\.\.4"):
        token_distillation_loss(torch.zeros(1, 7), listed, ce_weight=0, kd_weight=1, vocabulary=5)
