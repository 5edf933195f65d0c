"""The reference token losses: their gradients by finite differences, and ties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from fastkd.backends.tokens.reference import stable_topk


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("sparse", [False, True])
def test_gradients(reduction, sparse):
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 6, dtype=torch.float64).log_softmax(-1)
    if sparse:
        values, ids = teacher.topk(4)
        call = {"teacher_hidden": SparseTeacher(ids, values, "spread")}
    else:
        call = {"teacher_hidden": teacher, "teacher_weight": torch.eye(6, dtype=torch.float64)}

    def loss(hidden, weight, bias):
        return linear_token_distillation_loss(
            hidden, weight, target=torch.tensor([[0, 1, 2], [3, -100, 5]]), student_bias=bias,
            ce_weight=0.5, kd_weight=0.7, rank_weight=0.9, top_k=3, label_smoothing=0.1,
            student_temperature=1.5, teacher_temperature=0.7, reduction=reduction,
            backend="reference", **call,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))
    assert torch.autograd.gradgradcheck(loss, (hidden, weight, bias))


@given(
    scores=st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=12),
    k=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_stable_topk(scores, k):
    k = min(k, len(scores))
    expected = sorted(range(len(scores)), key=lambda v: (-scores[v], v))[:k]
    assert stable_topk(torch.tensor(scores), k).tolist() == expected


def test_half_types_are_computed_in_float32():
    torch.manual_seed(0)
    student = torch.randn(4, 9).bfloat16().requires_grad_()
    result = token_distillation_loss(
        student, torch.randn(4, 9).half(), torch.arange(4), ce_weight=1, kd_weight=1,
        backend="reference",
    )  # fmt: skip
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    assert student.grad.dtype == torch.bfloat16
