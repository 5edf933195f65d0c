"""The fused token losses with a teacher known at a few ids, against the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from tests.kernels.tokens_compare import DEVICE, assert_as_exact_as_reference

pytestmark = pytest.mark.usefixtures("on_the_device")

INF = math.inf
RESTS = ["drop", "spread", "renormalize"]
OPTIONS = {
    "ce_weight": 0.7,
    "kd_weight": 1.5,
    "rank_weight": 0.4,
    "top_k": 3,
    "label_smoothing": 0.1,
}


def teacher_of(positions: int, vocabulary: int, listed: int, rest: str, seed: int = 0):
    """The largest log-probabilities of random rows, in an order that is not the ids'."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    log_q = torch.log_softmax(2 * torch.randn(positions, vocabulary, generator=generator), -1)
    top = log_q.topk(listed)
    return SparseTeacher(top.indices, top.values, rest)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("listed", [3, 23])
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        OPTIONS | {"ce_weight": 0.0, "rank_weight": 0.0, "teacher_temperature": 2.0},
        OPTIONS | {"kd_weight": 0.0, "student_temperature": 0.5},
        OPTIONS | {"student_temperature": 2.0, "teacher_temperature": 0.5},
    ],
    ids=["all", "kd", "ce and rank", "all tempered"],
)
def test_rests(rest, listed, options):
    student = torch.randn(2, 23, generator=torch.Generator(DEVICE).manual_seed(1))
    teacher = teacher_of(2, 23, listed, rest)
    target = torch.tensor([4, 22])
    assert_as_exact_as_reference(token_distillation_loss, [student], teacher, target, **options)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_types_and_more_ids_than_a_block(rest, dtype):
    student = torch.randn(2, 300, generator=torch.Generator(DEVICE).manual_seed(2)).to(dtype)
    teacher = teacher_of(2, 300, 150, rest)
    teacher = SparseTeacher(teacher.ids.int(), teacher.log_probs.to(dtype), rest)
    assert_as_exact_as_reference(
        token_distillation_loss, [student], teacher, torch.tensor([4, 7]), reduction="none",
        return_prediction=True, **OPTIONS | {"top_k": 17},
    )  # fmt: skip


@pytest.mark.parametrize("kd_only", [True, False])
def test_a_tail_that_the_student_all_but_bans(kd_only):
    """Where p is so small that q/p is no float32: at listed ids, and at those of the tail."""
    student = torch.tensor(
        [[120.0, 0.0, -20.0, -60.0, -61.0, -INF], [90.0, 91.0, 0.0, 1.0, 2.0, 3.0]]
    )
    log_q = torch.tensor([[0.1, 0.4, 0.3], [0.5, 0.3, 0.1]]).log()
    teacher = SparseTeacher(torch.tensor([[0, 1, 2], [1, 0, 4]]), log_q, "tail")
    target = torch.tensor([0, 4])
    options = {"ce_weight": 0.0, "kd_weight": 1.0} if kd_only else OPTIONS
    assert_as_exact_as_reference(token_distillation_loss, [student], teacher, target, **options)


@pytest.mark.parametrize("rest", RESTS)
def test_hidden_states(rest):
    generator = torch.Generator(DEVICE).manual_seed(3)
    hidden = torch.randn(2, 3, 4, generator=generator)
    weight = torch.randn(19, 4, generator=generator)
    teacher = teacher_of(6, 19, 5, rest)
    teacher = SparseTeacher(teacher.ids.view(2, 3, 5), teacher.log_probs.view(2, 3, 5), rest)
    target = torch.arange(6).view(2, 3)
    assert_as_exact_as_reference(
        linear_token_distillation_loss, [hidden, weight], teacher, None, target, **OPTIONS
    )


def test_a_listed_teacher_with_every_id_is_the_dense_one():
    student = torch.randn(3, 9, generator=torch.Generator(DEVICE).manual_seed(4))
    teacher = teacher_of(3, 9, 9, "drop")
    dense = torch.empty(3, 9).scatter(1, teacher.ids, teacher.log_probs)
    target = torch.tensor([1, 2, 3])
    losses, expected = (
        token_distillation_loss(student, given, target, backend="triton", **OPTIONS)
        for given in (teacher, dense)
    )
    for part, same in zip(losses[:4], expected[:4], strict=True):
        torch.testing.assert_close(part, same)


@st.composite
def calls(draw):
    """One row with ties, banned ids, and listed ids without mass."""
    vocabulary = draw(st.integers(3, 9))
    listed = draw(st.integers(2, vocabulary))
    value = st.one_of(st.sampled_from([-INF, 0.0, 0.5, 0.5, 2.0]), st.floats(-3, 3, width=16))
    student = torch.tensor([draw(st.lists(value, min_size=vocabulary, max_size=vocabulary))])
    ids = torch.tensor([draw(st.permutations(range(vocabulary)))[:listed]])
    masses = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 5.0])
    mass = torch.tensor([draw(st.lists(masses, min_size=listed, max_size=listed))])
    unlisted = draw(st.sampled_from([0.5, 3.0]))
    log_probs = (mass / (mass.sum() + unlisted)).log()
    temperatures = st.sampled_from([1.0, 0.5, 3.0])
    options = OPTIONS | {
        "top_k": draw(st.integers(1, listed)),
        "rank_weight": draw(st.sampled_from([0.0, 0.4])),
        "student_temperature": draw(temperatures),
        "teacher_temperature": draw(temperatures),
    }
    target = torch.tensor([draw(st.integers(0, vocabulary - 1))])
    return student, SparseTeacher(ids, log_probs, draw(st.sampled_from(RESTS))), target, options


@settings(max_examples=25, deadline=None, derandomize=True)
@given(calls())
def test_any_list(call):
    student, teacher, target, options = call
    assert_as_exact_as_reference(token_distillation_loss, [student], teacher, target, **options)
