"""What the token losses refuse, and that the message names the argument."""

import pytest
import torch

from fastkd import (
    BackendUnavailable,
    InputError,
    SparseTeacher,
    linear_token_distillation_loss,
    token_distillation_loss,
)

LOGITS = torch.zeros(2, 3, 5)
TARGET = torch.zeros(2, 3, dtype=torch.int64)
HIDDEN, WEIGHT = torch.zeros(2, 3, 4), torch.zeros(5, 4)


def sparse(*shape: int, first: int = 0) -> SparseTeacher:
    ids = torch.arange(first, first + shape[-1]).expand(shape)
    return SparseTeacher(ids, torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_logits": TARGET}, "student_logits must be a floating point tensor, not torch.i"),
        ({"student_logits": None}, "student_logits must be a floating point tensor, not NoneType"),
        ({"student_logits": torch.tensor(1.0)}, r"student_logits must have shape \(\.\.\., size\)"),
        ({"student_logits": torch.zeros(2, 3, 0)}, "student_logits must have shape"),
        ({"teacher_logits": None}, "the teacher is needed where kd_weight"),
        ({"teacher_logits": None, "kd_weight": 0, "rank_weight": 1}, "the teacher is needed"),
        ({"teacher_logits": LOGITS.long()}, "teacher_logits must be a floating point"),
        (
            {"teacher_logits": torch.zeros(2, 3, 6)},
            "must share the vocabulary: teacher has 6 ids, student 5",
        ),
        ({"teacher_logits": torch.zeros(3, 2, 5)}, "teacher_logits must have the student's pos"),
        ({"teacher_logits": torch.zeros(2, 3, 5, requires_grad=True)}, "teacher_logits requires g"),
        ({"teacher_logits": sparse(3, 2, 4)}, "SparseTeacher must have the student's positions"),
        ({"teacher_logits": sparse(2, 3, 6)}, "lists 6 ids of a vocabulary of 5"),
        ({"teacher_logits": sparse(2, 3, 4, first=3)}, r"ids must be in 0\.\.4 .* not 5"),
        ({"teacher_logits": sparse(2, 3, 2, first=-1)}, r"ids must be in 0\.\.4 .* not -1"),
        ({"teacher_logits": sparse(2, 3, 2), "rank_weight": 1}, "at least top_k = 5 ids, not 2"),
        ({"target": None}, "target is needed where ce_weight is not 0"),
        ({"target": TARGET.float()}, "target must be an integer tensor, not torch.float32"),
        ({"target": TARGET.bool()}, "target must be an integer tensor, not torch.bool"),
        ({"target": TARGET[:1]}, r"target must have the student's positions \(2, 3\), not \(1, 3"),
        ({"target": TARGET + 5}, r"target must be in 0\.\.4 at counted positions, not 5"),
        ({"target": TARGET - 1}, r"target must be in 0\.\.4 at counted positions, not -1"),
        ({"mask": TARGET}, "mask must be a bool tensor, not torch.int64"),
        ({"mask": [True]}, "mask must be a bool tensor, not list"),
        ({"mask": TARGET[0] == 0}, "mask must have the student's positions"),
        ({"ce_weight": float("nan")}, "ce_weight must be a finite number, not nan"),
        ({"kd_weight": torch.ones(())}, "kd_weight must be a finite number"),
        ({"rank_weight": float("inf")}, "rank_weight must be a finite number, not inf"),
        ({"top_k": 0}, "top_k must be a positive integer, not 0"),
        ({"top_k": 2.0}, "top_k must be a positive integer, not 2.0"),
        ({"top_k": 6, "rank_weight": 1}, "top_k must be at most the vocabulary's 5, not 6"),
        ({"ignore_index": 0.5}, "ignore_index must be a whole number, not 0.5"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in 0\.\.1, not 1.5"),
        ({"student_temperature": 0}, "student_temperature must be a positive number, not 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature must be a positive number, not -1.0"),
        ({"reduction": "average"}, "reduction must be one of sum, mean, none, not 'average'"),
    ],
)
def test_dense(changes, message):
    call = {"student_logits": LOGITS, "teacher_logits": LOGITS, "target": TARGET}
    with pytest.raises(InputError, match=message):
        token_distillation_loss(**(call | {"ce_weight": 1, "kd_weight": 1} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_hidden": TARGET}, "student_hidden must be a floating point tensor"),
        ({"student_weight": WEIGHT.T}, r"student_weight must have shape \(V, 4\)"),
        ({"student_weight": WEIGHT[0]}, r"student_weight must have shape \(V, 4\)"),
        ({"student_weight": WEIGHT.double()}, "student_weight must be torch.float32 as student_h"),
        ({"student_bias": torch.zeros(4)}, r"student_bias must have shape \(V,\) = \(5,\)"),
        ({"student_bias": torch.zeros(5).half()}, "student_bias must be torch.float32"),
        ({"teacher_hidden": None}, "teacher_weight is given without teacher_hidden"),
        ({"teacher_hidden": None, "teacher_weight": None}, "the teacher is needed"),
        ({"teacher_hidden": sparse(2, 3, 4)}, "teacher_weight is given without teacher_hidden"),
        ({"teacher_weight": None}, "teacher_weight is needed with teacher_hidden"),
        ({"teacher_weight": torch.zeros(6, 4)}, "share the vocabulary: teacher_weight has 6 rows"),
        ({"teacher_weight": torch.zeros(5, 3)}, r"teacher_weight must have shape \(V, 4\)"),
        ({"teacher_bias": torch.zeros(6)}, r"teacher_bias must have shape \(V,\) = \(5,\)"),
        ({"teacher_hidden": HIDDEN[:1]}, "teacher_hidden must have the student's positions"),
        ({"teacher_hidden": HIDDEN.clone().requires_grad_()}, "teacher_hidden requires grad"),
        ({"teacher_weight": WEIGHT.clone().requires_grad_()}, "teacher_weight requires grad"),
        ({"teacher_bias": torch.zeros(5, requires_grad=True)}, "teacher_bias requires grad"),
        ({"target": TARGET + 5}, "target must be in 0"),
        ({"mask": TARGET}, "mask must be a bool tensor"),
        ({"top_k": 6, "rank_weight": 1}, "top_k must be at most the vocabulary's 5"),
    ],
)
def test_linear(changes, message):
    call = {"student_hidden": HIDDEN, "student_weight": WEIGHT, "target": TARGET}
    call |= {"teacher_hidden": HIDDEN, "teacher_weight": WEIGHT, "ce_weight": 1, "kd_weight": 1}
    with pytest.raises(InputError, match=message):
        linear_token_distillation_loss(**(call | changes))


def test_what_is_not_needed_is_not_read():
    result = token_distillation_loss(
        LOGITS, sparse(2, 3, 2, first=9), TARGET, ce_weight=1, kd_weight=0, top_k=6
    )
    assert result.kd == 0
    result = token_distillation_loss(LOGITS, LOGITS, TARGET + 9, ce_weight=0, kd_weight=1)
    assert result.ce == 0


def test_a_backend_that_cannot_serve_says_so():
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        token_distillation_loss(LOGITS, target=TARGET, ce_weight=1, kd_weight=0, backend="fast")
    assert issubclass(BackendUnavailable, RuntimeError)


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.int16, torch.int32])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_ids_of_any_integer_type(kind, backend):
    """Also where the type holds neither the vocabulary's size nor `ignore_index`."""
    vocabulary = 256
    logits = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([156, 2])  # 156 is -100 modulo 256
    listed = torch.tensor([[255, 1], [0, 7]])

    def losses(kind):
        return token_distillation_loss(
            logits,
            SparseTeacher(listed.to(kind), torch.tensor([[0.6, 0.3], [0.5, 0.1]]).log()),
            target.to(kind),
            ce_weight=1,
            kd_weight=1,
            backend=backend,
        )

    assert losses(kind).loss == losses(torch.int64).loss
