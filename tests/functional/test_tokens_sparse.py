"""Sparse teachers against the dense teacher that they stand for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import InputError, SparseTeacher, linear_token_distillation_loss
from fastkd import token_distillation_loss as loss_of

INF = math.inf
BACKENDS = ["reference", "torch"]


def top_of(log_probs: torch.Tensor, k: int, rest: str) -> SparseTeacher:
    """The k most likely ids, in an order that is not the falling one."""
    values, ids = log_probs.topk(k)
    order = torch.randperm(k)
    return SparseTeacher(ids[..., order], values[..., order], rest)


def dense_of(sparse: SparseTeacher, vocabulary: int) -> torch.Tensor:
    """q as loops over ids, before any temperature."""
    rows = []
    for ids, log_probs in zip(
        sparse.ids.flatten(0, -2).tolist(),
        sparse.log_probs.flatten(0, -2).exp().tolist(),
        strict=True,
    ):
        listed = sum(log_probs)
        rest = (1 - listed) / max(vocabulary - len(ids), 1) if sparse.rest == "spread" else 0.0
        scale = 1 / listed if sparse.rest == "renormalize" else 1.0
        row = [rest] * vocabulary
        for v, q in zip(ids, log_probs, strict=True):
            row[v] = q * scale
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).view(*sparse.ids.shape[:-1], vocabulary)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    seed=st.integers(0, 1000),
    rest=st.sampled_from(["drop", "spread", "renormalize"]),
    listed=st.integers(1, 9),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_divergence_and_its_gradient(backend, seed, rest, listed, temperature):
    torch.manual_seed(seed)
    student = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(2, 3, 9, dtype=torch.float64) * 2, -1)
    sparse = top_of(teacher, listed, rest)
    result = loss_of(
        student, sparse, ce_weight=0, kd_weight=1, student_temperature=2, reduction="none",
        teacher_temperature=temperature, backend=backend,
    )  # fmt: skip
    q = dense_of(sparse, 9)
    powers = q ** (1 / temperature)
    q = powers / powers.sum(-1, keepdim=True) * q.sum(-1, keepdim=True)
    log_p = torch.log_softmax(student / 2, -1)
    expected = (torch.special.xlogy(q, q) - q * log_p).sum(-1)
    torch.testing.assert_close(result.kd, expected.detach())
    grads = [torch.autograd.grad(value.sum(), student)[0] for value in (result.loss, expected)]
    torch.testing.assert_close(*grads)
    p, total = log_p.detach().exp(), q.sum(-1, keepdim=True)
    torch.testing.assert_close(grads[0], (p * total - q) / 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rest", ["drop", "spread", "renormalize"])
def test_a_list_of_the_whole_vocabulary_is_the_dense_teacher(backend, rest):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    ids = torch.rand(4, 6).argsort(-1).int()
    sparse = SparseTeacher(ids, torch.log_softmax(teacher, -1).gather(-1, ids.long()), rest)
    options = {"ce_weight": 0, "kd_weight": 1, "rank_weight": 1, "teacher_temperature": 1.7}
    torch.testing.assert_close(
        loss_of(student, sparse, top_k=3, backend=backend, **options),
        loss_of(student, teacher, top_k=3, backend=backend, **options),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rest", ["drop", "renormalize"])
def test_ranking_reads_unlisted_ids_as_without_mass(backend, rest):
    torch.manual_seed(1)
    student = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(3, 8, dtype=torch.float64), -1)
    sparse = top_of(teacher, 4, rest)
    dense = dense_of(sparse, 8).log()
    options = {"ce_weight": 0, "kd_weight": 0, "rank_weight": 1, "top_k": 3, "backend": backend}
    results = [loss_of(student, value, **options) for value in (sparse, dense)]
    torch.testing.assert_close(*(result.rank for result in results))
    torch.testing.assert_close(
        *(torch.autograd.grad(result.loss, student)[0] for result in results)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranking_of_equal_log_probs_takes_the_lower_ids(backend):
    student = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=torch.float64)
    sparse = SparseTeacher(torch.tensor([3, 0, 2]), torch.full((3,), 0.3).log().double())
    result = loss_of(
        student, sparse, ce_weight=0, kd_weight=0, rank_weight=1, top_k=2, backend=backend
    )
    # t = (0, 2), s = (1, 3): R1 = p2 - p0; q(t) > q(1) = 0 but not q(3).
    p = torch.softmax(student, -1)
    expected = (p[2] - p[0]) + (p[1] - p[0]) + (p[1] - p[2])
    torch.testing.assert_close(result.rank, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rest", ["drop", "spread", "renormalize"])
def test_banned_ids(backend, rest):
    student = torch.tensor([[0.0, -INF, 1.0, 0.5]] * 2, dtype=torch.float64, requires_grad=True)
    half = math.log(0.4)
    sparse = SparseTeacher(
        torch.tensor([[0, 2, 1], [0, 2, 1]]),
        torch.tensor([[half, half, -INF], [half, half, half]], dtype=torch.float64),
        rest,
    )
    result = loss_of(student, sparse, ce_weight=0, kd_weight=1, reduction="none", backend=backend)
    assert result.kd[0].isfinite() and result.kd[1] == INF
    result.loss.sum().backward()
    assert student.grad.isfinite().all() and torch.equal(student.grad[:, 1], torch.zeros(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_spread_mass_reaches_a_banned_id_that_is_not_listed(backend):
    student = torch.tensor([0.0, -INF, 1.0])
    for rest, infinite in (("spread", True), ("drop", False), ("renormalize", False)):
        sparse = SparseTeacher(torch.tensor([0]), torch.tensor([-0.5]), rest)
        result = loss_of(student, sparse, ce_weight=0, kd_weight=1, backend=backend)
        assert bool(result.kd.isinf()) == infinite


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rest", ["drop", "spread", "renormalize"])
def test_a_position_that_does_not_count_may_list_anything(backend, rest):
    torch.manual_seed(0)
    student = torch.randn(2, 6, requires_grad=True)
    mask = torch.tensor([True, False])
    sparse = SparseTeacher(
        torch.tensor([[0, 4], [-1, 10**9]]), torch.tensor([[-1.0, -2.0], [math.nan, INF]]), rest
    )
    options = {"ce_weight": 0, "kd_weight": 1, "rank_weight": 1, "top_k": 2, "backend": backend}
    result = loss_of(student, sparse, mask=mask, **options)
    alone = loss_of(
        student[:1].detach(), SparseTeacher(sparse.ids[:1], sparse.log_probs[:1], rest), **options
    )
    torch.testing.assert_close(result.loss.detach(), alone.loss)
    result.loss.backward()
    assert torch.equal(student.grad[1], torch.zeros(6))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rest", ["drop", "spread", "renormalize"])
def test_linear(backend, rest):
    torch.manual_seed(2)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    sparse = top_of(torch.log_softmax(torch.randn(2, 3, 8, dtype=torch.float64), -1), 5, rest)
    options = {"ce_weight": 0, "kd_weight": 1, "rank_weight": 1, "top_k": 3, "backend": backend}
    result = linear_token_distillation_loss(hidden, weight, sparse, **options)
    expected = loss_of(hidden @ weight.T, sparse, **options)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value.loss, (hidden, weight)) for value in (result, expected))
    )


@pytest.mark.parametrize(
    ("ids", "log_probs", "rest", "message"),
    [
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), "keep", "rest must be one of"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "drop", "ids must be integers"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3).long(), "drop", "log_probs must be floating"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 4), "drop", r"must both be \(\.\.\., K\)"),
        (torch.zeros(2, 0).long(), torch.zeros(2, 0), "drop", "at least one id"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3, requires_grad=True), "drop", "requires grad"),
    ],
)
def test_what_does_not_fit_is_refused(ids, log_probs, rest, message):
    with pytest.raises(InputError, match=message):
        SparseTeacher(ids, log_probs, rest)
