"""The fused token losses of logits against the reference, under the interpreter or on a GPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import BackendUnavailable, token_distillation_loss
from tests.kernels.tokens_compare import DEVICE, assert_as_exact_as_reference, run

pytestmark = pytest.mark.usefixtures("on_the_device")

INF = math.inf
EVERYTHING = {
    "ce_weight": 0.7, "kd_weight": 1.5, "rank_weight": 0.4, "top_k": 3, "label_smoothing": 0.1
}  # fmt: skip

TEMPERED_KD = {
    "ce_weight": 0.0,
    "kd_weight": 1.0,
    "student_temperature": 0.5,
    "teacher_temperature": 2.0,
}


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed))).to(dtype)


def batch(dtype: torch.dtype = torch.float32, vocabulary: int = 13):
    """Two by two positions: student, teacher, target."""
    student = logits(2, 2, vocabulary, seed=1, dtype=dtype)
    teacher = logits(2, 2, vocabulary, seed=2, dtype=dtype)
    return student, teacher, torch.tensor([[3, 0], [12, 7]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {"ce_weight": 1.0, "kd_weight": 0.0},
        {"ce_weight": 1.0, "kd_weight": 0.0, "label_smoothing": 0.2, "return_prediction": True},
        {"ce_weight": 1.0, "kd_weight": 0.0, "label_smoothing": 1.0},
        {"ce_weight": 0.0, "kd_weight": 1.0},
        {
            "ce_weight": 0.0,
            "kd_weight": 1.0,
            "student_temperature": 0.5,
            "teacher_temperature": 2.0,
        },
        {"ce_weight": 0.0, "kd_weight": 0.0, "rank_weight": 1.0, "student_temperature": 3.0},
        {
            "ce_weight": 0.5,
            "kd_weight": -0.5,
            "student_temperature": 0.7,
            "return_prediction": True,
        },
        EVERYTHING,
        EVERYTHING | {"top_k": 1, "student_temperature": 2.0, "return_prediction": True},
        EVERYTHING | {"top_k": 13, "teacher_temperature": 0.5},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_every_component_alone_and_together(options, dtype):
    student, teacher, target = batch(dtype)
    assert_as_exact_as_reference(token_distillation_loss, [student], teacher, target, **options)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reductions(reduction, masked, dtype):
    student, teacher, target = batch(dtype)
    mask = torch.tensor([[True, False], [True, True]]) if masked else None
    assert_as_exact_as_reference(
        token_distillation_loss,
        [student],
        teacher,
        target,
        mask=mask,
        reduction=reduction,
        **EVERYTHING,
    )


def test_more_ids_than_a_block_in_every_list():
    """Rows of several blocks: the running maxima move, and ids of all blocks meet in the lists."""
    vocabulary = 2600
    student = logits(2, vocabulary, seed=5) * torch.linspace(0.5, 3, vocabulary)
    teacher = logits(2, vocabulary, seed=6) * torch.linspace(3, 0.5, vocabulary)
    target = torch.tensor([2599, 1])
    assert_as_exact_as_reference(
        token_distillation_loss,
        [student],
        teacher,
        target,
        **EVERYTHING | {"top_k": 32, "student_temperature": 2.0},
    )
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, target, ce_weight=1.0, kd_weight=1.0,
        return_prediction=True,
    )  # fmt: skip


_VALUES = st.one_of(
    st.sampled_from([-INF, -1.5, 0.0, -0.0, 0.5, 0.5, 2.0, 60.0]), st.floats(-4, 4, width=16)
)


@st.composite
def calls(draw):
    """Rows with ties and banned ids, some of them throughout; any options that are legal."""
    positions, vocabulary = draw(st.integers(1, 2)), draw(st.integers(2, 9))
    size = positions * vocabulary
    student, teacher = (
        torch.tensor(draw(st.lists(_VALUES, min_size=size, max_size=size))).view(positions, -1)
        for _ in range(2)
    )
    targets = st.sampled_from([*range(vocabulary), -100])
    target = torch.tensor(draw(st.lists(targets, min_size=positions, max_size=positions)))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=positions, max_size=positions)))
    temperatures = st.sampled_from([1.0, 0.5, 3.0])
    weights = st.sampled_from([0.0, 0.5, 1.0])
    options = {
        "ce_weight": draw(weights),
        "kd_weight": draw(weights),
        "rank_weight": draw(weights),
        "top_k": draw(st.integers(1, vocabulary)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "student_temperature": draw(temperatures),
        "teacher_temperature": draw(temperatures),
        "mask": draw(st.sampled_from([None, mask])),
        "reduction": draw(st.sampled_from(["sum", "mean", "none"])),
        "return_prediction": draw(st.booleans()),
    }
    return student, teacher, target, options


@settings(max_examples=40, deadline=None, derandomize=True)
@given(calls())
def test_any_call(call):
    student, teacher, target, options = call
    assert_as_exact_as_reference(token_distillation_loss, [student], teacher, target, **options)


def test_gradient_is_zero_at_banned_ids_and_in_rows_that_do_not_count():
    student, teacher, target = batch()
    student[..., [2, 9]] = -INF
    teacher[..., [2, 9]] = -INF
    student[0, 1] = math.nan
    teacher[0, 1] = INF
    target[0, 1] = -100
    losses, (gradient,) = run(
        token_distillation_loss, "triton", [student], teacher, target, reduction="none",
        return_prediction=True, **EVERYTHING,
    )  # fmt: skip
    assert torch.equal(gradient[..., [2, 9]], torch.zeros(2, 2, 2))
    assert torch.equal(gradient[0, 1], torch.zeros(13))
    assert [part[0, 1].item() for part in losses] == [0] * 6
    assert torch.isfinite(losses.loss).all() and torch.isfinite(gradient).all()


def test_padding_of_the_vocabulary_changes_nothing():
    student, teacher, target = batch()
    whole = run(token_distillation_loss, "triton", [student], teacher, target, **EVERYTHING)
    pad = torch.full((2, 2, 3), -INF)
    padded = run(
        token_distillation_loss,
        "triton",
        [torch.cat([student, pad], -1)],
        torch.cat([teacher, pad], -1),
        target,
        **EVERYTHING,
    )
    assert torch.equal(whole[0].loss, padded[0].loss)
    assert torch.equal(whole[1][0], padded[1][0][..., :13])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        lambda x: x[:1].expand_as(x),
    ],
    ids=["rows swapped", "vocabulary outermost", "every other", "cut", "expanded"],
)
def test_strides(view):
    student, teacher, target = batch()
    teacher, given_teacher = view(teacher).contiguous(), view(teacher)
    student = view(student)
    expected = token_distillation_loss(
        student.contiguous(), teacher, target, backend="triton", **EVERYTHING
    )
    leaf = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    losses = token_distillation_loss(leaf, given_teacher, target, backend="triton", **EVERYTHING)
    assert torch.equal(losses.loss, expected.loss)
    (gradient,) = torch.autograd.grad(losses.loss, leaf)
    leaf = student.contiguous().requires_grad_()
    losses = token_distillation_loss(leaf, teacher, target, backend="triton", **EVERYTHING)
    assert torch.equal(gradient, torch.autograd.grad(losses.loss, leaf)[0])


@pytest.mark.parametrize("shape", [(13,), (1, 13), (2, 1, 2, 13), (0, 13)])
def test_positions_of_any_number_of_dimensions(shape):
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    target = torch.ones(shape[:-1], dtype=torch.int32)
    losses = assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, target, reduction="none",
        return_prediction=True, **EVERYTHING,
    )  # fmt: skip
    assert losses.prediction.shape == shape[:-1]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_no_rows_and_no_counted_rows_are_zero(reduction):
    student, teacher, target = batch()
    for size, mask in ((0, None), (2, torch.zeros(2, 2, dtype=torch.bool))):
        losses, (gradient,) = run(
            token_distillation_loss, "triton", [student[:size]], teacher[:size], target[:size],
            mask=mask, reduction=reduction, **EVERYTHING,
        )  # fmt: skip
        assert [part.item() for part in losses[:4]] == [0] * 4
        assert torch.equal(gradient, torch.zeros(size, 2, 13))


def test_offsets_beyond_31_bits():
    """The last row, and the last ids of every row, lie more than 2³¹ elements into the storage."""
    rows, vocabulary = 2, 6
    step, stride = 2**29 + 3, 7
    storage = torch.empty(step * (vocabulary - 1) + stride * rows, dtype=torch.float16)
    far = storage.as_strided((rows, vocabulary), (stride, step))
    far.copy_(logits(rows, vocabulary))
    wide = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((rows, vocabulary), (2**31, 1))
    wide.copy_(logits(rows, vocabulary, seed=1))
    target = torch.tensor([5, 1])
    for student, teacher in ((far, wide), (wide, far)):
        losses = token_distillation_loss(student, teacher, target, backend="triton", **EVERYTHING)
        near = token_distillation_loss(
            student.contiguous(), teacher.contiguous(), target, backend="triton", **EVERYTHING
        )
        assert torch.equal(losses.loss, near.loss)


def test_types_it_does_not_take_are_refused_by_name_only():
    student, teacher, target = (x.double() if x.is_floating_point() else x for x in batch())
    with pytest.raises(BackendUnavailable, match="float64"):
        token_distillation_loss(student, teacher, target, backend="triton", **EVERYTHING)
    with pytest.raises(BackendUnavailable, match="top_k"):
        token_distillation_loss(
            logits(1, 40), logits(1, 40), torch.zeros(1).long(), backend="triton",
            ce_weight=0.0, kd_weight=0.0, rank_weight=1.0, top_k=33,
        )  # fmt: skip
    losses = token_distillation_loss(student, teacher, target, **EVERYTHING)
    assert losses.loss.dtype == torch.float64
