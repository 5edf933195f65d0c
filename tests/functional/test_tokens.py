"""The token losses against the published formulas, written out as loops over Python numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastkd import linear_token_distillation_loss, token_distillation_loss

INF = math.inf
BACKENDS = ["reference", "torch"]


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def top_ids(scores: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda v: (-scores[v], v))[:k]


def cross_entropy(logits: list[float], target: int, smoothing: float) -> float:
    p = softmax(logits, 1.0)
    finite = [v for v, z in enumerate(logits) if z > -INF]
    if p[target] == 0:
        return INF
    spread = sum(math.log(p[v]) for v in finite) / len(finite)
    return -(1 - smoothing) * math.log(p[target]) - smoothing * spread


def divergence(p: list[float], q: list[float]) -> float:
    if any(a > 0 and b == 0 for a, b in zip(q, p, strict=True)):
        return INF
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)


def ranking(p: list[float], q: list[float], t: list[int], s: list[int]) -> float:
    first = sum(max(0.0, p[t_i] - p[t[0]]) for t_i in t)
    pairs = sum(max(0.0, p[s_j] - p[t_i]) for t_i in t for s_j in s if q[t_i] > q[s_j])
    return first + pairs


@st.composite
def rows(draw, vocabulary: int = 7):
    """Student and teacher logits of one position; few values, so that ties are common."""
    value = st.one_of(st.sampled_from([-INF, -1.5, 0.0, 0.5, 0.5, 2.0]), st.floats(-4, 4, width=16))
    row = st.lists(value, min_size=vocabulary, max_size=vocabulary).filter(
        lambda logits: max(logits) > -INF
    )
    return draw(row), draw(row)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    position=rows(),
    target=st.integers(0, 6),
    smoothing=st.sampled_from([0.0, 0.1]),
    temperatures=st.sampled_from([(1.0, 1.0), (2.0, 0.5), (1.0, 0.25)]),
    top_k=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_published_formulas(backend, position, target, smoothing, temperatures, top_k):
    student, teacher = position
    p, q = softmax(student, temperatures[0]), softmax(teacher, temperatures[1])
    result = token_distillation_loss(
        torch.tensor(student, dtype=torch.float64),
        torch.tensor(teacher, dtype=torch.float64),
        torch.tensor(target),
        ce_weight=0.5,
        kd_weight=2.0,
        rank_weight=3.0,
        top_k=top_k,
        label_smoothing=smoothing,
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
        return_prediction=True,
        backend=backend,
    )
    ce = cross_entropy(student, target, smoothing)
    kd = divergence(p, q)
    rank = ranking(p, q, top_ids(teacher, top_k), top_ids(student, top_k))
    close = {"rel": 1e-12, "abs": 1e-12}
    assert result.ce.item() == pytest.approx(ce, **close)
    assert result.kd.item() == pytest.approx(kd, **close)
    assert result.rank.item() == pytest.approx(rank, **close)
    assert result.loss.item() == pytest.approx(0.5 * ce + 2 * kd + 3 * rank, **close)
    assert result.prediction.item() == top_ids(student, 1)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranking_by_hand(backend):
    # p = (.1 .2 .3 .4), q = (.4 .3 .2 .1): t = (0, 1), s = (3, 2), q(t) > q(s) for every pair.
    student = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    teacher = student.flip(0)
    result = token_distillation_loss(
        student, teacher, ce_weight=0, kd_weight=0, rank_weight=1, top_k=2, backend=backend
    )
    first = 0.2 - 0.1
    pairs = (0.4 - 0.1) + (0.4 - 0.2) + (0.3 - 0.1) + (0.3 - 0.2)
    assert result.rank.item() == pytest.approx(first + pairs, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranking_of_equal_logits_takes_the_lower_ids(backend):
    student = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([2.0, 0.0, 0.0, 2.0, 2.0], dtype=torch.float64)
    result = token_distillation_loss(
        student, teacher, ce_weight=0, kd_weight=0, rank_weight=1, top_k=2, backend=backend
    )
    # t = (0, 3), s = (1, 2): R1 = p3 - p0, R2 = 2(p1 - p0) ; p3 ties with p1 and p2.
    p = torch.softmax(student.detach(), -1)
    assert result.rank.item() == pytest.approx(3 * float(p[1] - p[0]), rel=1e-12)
    result.loss.backward()
    u = torch.tensor([-3.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(student.grad, p * (u - (u * p).sum()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropy_is_pytorchs(backend):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 9, dtype=torch.float64)
    target = torch.randint(9, (3, 5))
    target[1, 2:] = -100
    for reduction in ("sum", "mean"):
        result = token_distillation_loss(
            logits, target=target, ce_weight=1, kd_weight=0, label_smoothing=0.2,
            reduction=reduction, backend=backend,
        )  # fmt: skip
        expected = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), label_smoothing=0.2, reduction=reduction
        )
        torch.testing.assert_close(result.loss, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_components_of_weight_zero_read_zero(backend):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    target = torch.randint(6, (4,))
    both = token_distillation_loss(
        student, teacher, target, ce_weight=1, kd_weight=1, rank_weight=1, top_k=3, backend=backend
    )
    for name in ("ce", "kd", "rank"):
        weights = {f"{other}_weight": float(other == name) for other in ("ce", "kd", "rank")}
        alone = token_distillation_loss(
            student, teacher, target, top_k=3, backend=backend, **weights
        )
        for other in ("ce", "kd", "rank"):
            expected = getattr(both, other) if other == name else torch.zeros_like(both.loss)
            torch.testing.assert_close(getattr(alone, other), expected)
        torch.testing.assert_close(alone.loss, getattr(both, name))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_component_at_all(backend):
    logits = torch.randn(3, 4, requires_grad=True)
    result = token_distillation_loss(
        logits, ce_weight=0, kd_weight=0, return_prediction=True, backend=backend
    )
    result.loss.backward()
    assert [value.item() for value in result[:4]] == [0, 0, 0, 0]
    assert torch.equal(logits.grad, torch.zeros(3, 4))
    assert torch.equal(result.prediction, logits.argmax(-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_smoothing_skips_banned_ids(backend):
    logits = torch.tensor([0.3, -INF, 1.0, -INF], dtype=torch.float64, requires_grad=True)
    result = token_distillation_loss(
        logits, target=torch.tensor(2), ce_weight=1, kd_weight=0, label_smoothing=0.3,
        backend=backend,
    )  # fmt: skip
    kept = logits.detach()[[0, 2]].requires_grad_()
    expected = F.cross_entropy(kept, torch.tensor(1), label_smoothing=0.3)
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    expected.backward()
    torch.testing.assert_close(
        logits.grad, torch.tensor([kept.grad[0], 0, kept.grad[1], 0], dtype=torch.float64)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_banned_target_is_infinite_with_finite_gradient(backend, smoothing):
    logits = torch.tensor([[0.3, -INF, 1.0], [0.1, 0.2, 0.3]], requires_grad=True)
    result = token_distillation_loss(
        logits, target=torch.tensor([1, 1]), ce_weight=1, kd_weight=0, label_smoothing=smoothing,
        reduction="none", backend=backend,
    )  # fmt: skip
    assert result.ce[0] == INF and result.loss[0] == INF and result.ce[1].isfinite()
    result.loss.sum().backward()
    p = torch.softmax(logits.detach()[0], -1)
    expected = p - smoothing * torch.tensor([0.5, 0, 0.5])
    torch.testing.assert_close(logits.grad[0], expected)
    assert logits.grad[0, 1] == 0 and logits.grad[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_teacher_mass_on_a_banned_id_is_infinite(backend):
    student = torch.tensor([[0.0, -INF, 1.0]] * 3, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [1.0, -INF, 0.0], [1.0, -300.0, 0.0]])
    result = token_distillation_loss(
        student, teacher, ce_weight=0, kd_weight=1, reduction="none", backend=backend
    )
    # A mass too small for float32 is still a mass.
    assert result.kd[0] == INF and result.kd[1].isfinite() and result.kd[2] == INF
    result.loss.sum().backward()
    p, q = torch.softmax(student.detach(), -1), torch.softmax(teacher, -1)
    torch.testing.assert_close(student.grad, (p - q).masked_fill(p == 0, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_any_finite_logit(backend):
    dead, alive = torch.full((4,), -INF), torch.randn(4)
    student = torch.stack([dead, alive, dead]).requires_grad_()
    teacher = torch.stack([alive, dead, dead])
    result = token_distillation_loss(
        student, teacher, torch.tensor([1, 1, 1]), ce_weight=1, kd_weight=1, rank_weight=1,
        top_k=2, label_smoothing=0.1, reduction="none", return_prediction=True, backend=backend,
    )  # fmt: skip
    assert result.ce[0] == INF and result.ce[1].isfinite() and result.ce[2] == INF
    assert result.kd[0] == INF and result.kd[1] == 0 and result.kd[2] == 0
    assert torch.equal(result.rank, torch.zeros(3))
    assert result.prediction.tolist() == [0, int(alive.argmax()), 0]
    result.loss.sum().backward()
    assert torch.equal(student.grad[[0, 2]], torch.zeros(2, 4))
    expected = torch.softmax(alive, -1) - 0.9 * F.one_hot(torch.tensor(1), 4) - 0.025
    torch.testing.assert_close(student.grad[1], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", ["mask", "ignore_index", "both"])
def test_masked_positions_give_exact_zeros(backend, way):
    torch.manual_seed(0)
    counted = torch.tensor([[True, False, True], [False, True, False]])
    target = torch.randint(5, (2, 3))
    mask = None if way == "ignore_index" else counted.clone()
    if way == "both":
        mask[0, 1] = True
    if way != "mask":
        target[~counted] = -7
    else:
        target[~counted] = 10**6
    clean, teacher = torch.randn(2, 2, 3, 5)
    garbage = torch.tensor([math.nan, INF, -INF, INF, math.nan])
    student = torch.where(counted[..., None], clean, garbage).requires_grad_()
    result = token_distillation_loss(
        student, torch.where(counted[..., None], teacher, garbage), target, ce_weight=1,
        kd_weight=1, rank_weight=1, top_k=2, ignore_index=-7, mask=mask, reduction="none",
        return_prediction=True, backend=backend,
    )  # fmt: skip
    result.loss.sum().backward()
    for value in (*result, student.grad):
        assert torch.equal(value[~counted], torch.zeros_like(value[~counted]))
    kept = clean[counted].requires_grad_()
    alone = token_distillation_loss(
        kept, teacher[counted], target[counted], ce_weight=1, kd_weight=1, rank_weight=1, top_k=2,
        reduction="mean", return_prediction=True, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(result.loss.sum() / 3, alone.loss)
    alone.loss.backward()
    torch.testing.assert_close(student.grad[counted] / 3, kept.grad)
    assert torch.equal(result.prediction[counted], alone.prediction)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (2, 0, 5)])
def test_nothing_counted_is_a_finite_zero(backend, reduction, shape):
    student = torch.randn(shape, requires_grad=True)
    result = token_distillation_loss(
        student, torch.randn(shape), torch.full(shape[:-1], -100), ce_weight=1, kd_weight=1,
        rank_weight=1, top_k=2, reduction=reduction, return_prediction=True, backend=backend,
    )  # fmt: skip
    result.loss.sum().backward()
    assert torch.equal(student.grad, torch.zeros(shape))
    for value in result[:4]:
        assert torch.equal(value, torch.zeros(shape[:-1] if reduction == "none" else ()))
    assert torch.equal(result.prediction, torch.zeros(shape[:-1], dtype=torch.int64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_is_the_loss_of_the_products(backend):
    torch.manual_seed(0)
    make = {"dtype": torch.float64}
    hidden, weight, bias = torch.randn(2, 3, 4, **make), torch.randn(7, 4, **make), torch.randn(7)
    bias = bias.double()
    bias[3] = -INF
    teacher = torch.randn(2, 3, 5, **make), torch.randn(7, 5, **make), torch.randn(7, **make)
    teacher[2][3] = -INF
    target = torch.tensor([[0, 1, 2], [4, -100, 6]])
    options = {"ce_weight": 0.5, "kd_weight": 1.5, "rank_weight": 2, "top_k": 3} | {
        "label_smoothing": 0.1, "student_temperature": 2, "backend": backend
    }  # fmt: skip
    inputs = [value.requires_grad_() for value in (hidden, weight, bias)]
    result = linear_token_distillation_loss(
        hidden, weight, *teacher[:2], target, student_bias=bias, teacher_bias=teacher[2], **options
    )
    expected = token_distillation_loss(
        F.linear(hidden, weight, bias), F.linear(*teacher), target, **options
    )
    torch.testing.assert_close(result, expected)
    assert result.loss.isfinite()
    grads = torch.autograd.grad(result.loss, inputs)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.loss, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_components_are_detached(backend):
    student = torch.randn(2, 5, requires_grad=True)
    result = token_distillation_loss(
        student, torch.randn(2, 5), torch.tensor([1, 2]), ce_weight=1, kd_weight=1, rank_weight=1,
        backend=backend,
    )  # fmt: skip
    assert result.loss.requires_grad
    assert not any(value.requires_grad for value in (result.ce, result.kd, result.rank))
    assert result.prediction is None
