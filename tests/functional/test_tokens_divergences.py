"""Divergences and entropy against their definitions, their properties, and torch beside."""

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
from fastkd.backends.tokens.torch import chunk, positions
from tests.tokens_drawn import calls

INF = math.inf
FORMS = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
BETAS = {"jsd": 0.3, "skew_kl": 0.2, "skew_reverse_kl": 0.4}
BACKENDS = ("reference", "torch")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, each of several blocks, the last ones shorter."""
    monkeypatch.setattr(positions, "CHUNK", 128)
    monkeypatch.setattr(chunk, "BLOCK", 40)


def kl(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Σ q·log(q/p) with 0·log 0 = 0."""
    return torch.where(q > 0, q * (q / p).log(), 0).sum(-1)


def by_definition(q, p, form, beta):
    """As the papers write them, of probabilities."""
    mixed = beta * q + (1 - beta) * p if beta is not None else None
    return {
        "kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jsd": lambda: beta * kl(q, mixed) + (1 - beta) * kl(p, mixed),
        "skew_kl": lambda: kl(q, mixed),
        "skew_reverse_kl": lambda: kl(p, beta * p + (1 - beta) * q),
        "tvd": lambda: (p - q).abs().sum(-1) / 2,
    }[form]()


def loss_of(student, teacher, form, backend="reference", **options):
    given = {"ce_weight": 0.0, "kd_weight": 1.0, "reduction": "none"} | options
    return token_distillation_loss(student, teacher, divergence=form, backend=backend, **given)


def pair(rows=6, vocabulary=11, scale=2.0, seed=0):
    torch.manual_seed(seed)
    student = torch.randn(rows, vocabulary, dtype=torch.float64) * scale
    return student.requires_grad_(), torch.randn(rows, vocabulary, dtype=torch.float64) * scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_value_gradient_and_entropy_by_definition(form, backend):
    student, teacher = pair()
    beta = BETAS.get(form)
    found = loss_of(
        student, teacher, form, backend, beta=beta, entropy_weight=-0.3,
        student_temperature=1.5, teacher_temperature=0.7,
    )  # fmt: skip
    p, q = torch.softmax(student / 1.5, -1), torch.softmax(teacher / 0.7, -1)
    entropy = -(p * p.log()).sum(-1)
    expected = by_definition(q, p, form, beta)
    torch.testing.assert_close(found.kd, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.entropy, entropy.detach(), rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad((expected - 0.3 * entropy).sum(), student)
    gradient = torch.autograd.grad(found.loss.sum(), student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rest", [None, "spread", "tail"])
def test_gradcheck(form, rest):
    student, teacher = pair(3, 7)
    if rest:
        values, ids = teacher.log_softmax(-1).topk(3)
        teacher = SparseTeacher(ids, values, rest)

    def loss(logits):
        return loss_of(
            logits, teacher, form, beta=BETAS.get(form), entropy_weight=0.4,
            student_temperature=1.3, teacher_temperature=0.8,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_linear_form(form, backend):
    torch.manual_seed(0)
    make = {"dtype": torch.float64}
    learned = [torch.randn(*shape, **make).requires_grad_() for shape in ((4, 3), (7, 3), (7,))]
    theirs, target = (torch.randn(4, 2, **make), torch.randn(7, 2, **make)), torch.arange(4)

    def loss(hidden, weight, bias):
        return linear_token_distillation_loss(
            hidden, weight, *theirs, target, student_bias=bias, ce_weight=0.5, kd_weight=1.0,
            entropy_weight=0.4, divergence=form, beta=BETAS.get(form), student_temperature=1.3,
            reduction="mean", backend=backend,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, learned)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [1e-9, 1e-3, 0.05, 0.95, 1 - 1e-3, 1 - 1e-9])
def test_gradcheck_of_jsd_near_its_ends(beta, backend):
    """Times what makes it of the size of a KL."""
    student, teacher = pair(3, 7)

    def loss(logits):
        scale = 1 / min(beta, 1 - beta)
        return loss_of(logits, teacher, "jsd", backend, beta=beta, kd_weight=scale).loss

    assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_where_both_are_equal(form, backend):
    student, _ = pair()
    found = loss_of(student, student.detach().clone(), form, backend)
    assert found.kd.eq(0).all()
    assert torch.autograd.grad(found.loss.sum(), student)[0].abs().max() < 1e-15


betas = st.floats(1e-6, 1 - 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@given(beta=betas, seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 20.0]))
@settings(max_examples=40, deadline=None)
def test_properties(backend, beta, seed, scale):
    student, teacher = pair(4, 9, scale, seed)
    student = student.detach()

    def value(form, q=teacher, p=student, **options):
        return loss_of(p, q, form, backend, **options).kd

    close = {"rtol": 1e-8, "atol": 1e-13}
    jsd = value("jsd", beta=beta)
    turned = value("jsd", q=student, p=teacher, beta=1 - beta)
    torch.testing.assert_close(jsd, turned, **close)
    assert (jsd <= -beta * math.log(beta) - (1 - beta) * math.log1p(-beta) + 1e-12).all()
    for form in ("skew_kl", "skew_reverse_kl"):
        assert (value(form, beta=beta) <= -math.log(beta) + 1e-12).all()
    assert (value("tvd") <= 1 + 1e-12).all()
    for form in FORMS:
        assert (value(form) >= 0).all()
    for form in ("kl", "reverse_kl"):
        torch.testing.assert_close(value(f"skew_{form}", beta=0.0), value(form), rtol=0, atol=0)
        assert value(form, q=student).eq(0).all()
    # So near to 0 that even of the unlikeliest ids nothing is seen of β.
    torch.testing.assert_close(value("jsd", beta=1e-200) / 1e-200, value("kl"), **close)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jsd_towards_the_ends(backend):
    student, teacher = pair(scale=1.0)
    forward, reverse = (loss_of(student, teacher, form).kd for form in ("kl", "reverse_kl"))
    beta = 1e-7
    near = loss_of(student, teacher, "jsd", backend, beta=beta).kd / beta
    torch.testing.assert_close(near, forward, rtol=1e-4, atol=1e-6)
    near = loss_of(student, teacher, "jsd", backend, beta=1 - beta).kd / beta
    torch.testing.assert_close(near, reverse, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 2**16), listed=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_tail_is_one_more_outcome(backend, form, seed, listed):
    student, teacher = pair(5, 9, 1.5, seed)
    log_q, beta = teacher.log_softmax(-1), BETAS.get(form)
    values, ids = log_q.topk(listed)
    # Padding that repeats an id counts for nothing.
    padded = SparseTeacher(
        torch.cat([ids[:, :1], ids], 1),
        torch.cat([torch.full_like(values[:, :1], -INF), values], 1),
        "tail",
    )
    found = loss_of(student, padded, form, backend, beta=beta)
    p = student.softmax(-1)
    joined = [
        torch.cat([each.gather(1, ids), 1 - each.gather(1, ids).sum(-1, keepdim=True)], 1)
        for each in (log_q.exp(), p)
    ]
    expected = by_definition(*joined, form, beta)
    torch.testing.assert_close(found.kd, expected.detach(), rtol=1e-7, atol=1e-9)
    gradient = torch.autograd.grad(found.loss.sum(), student)
    wanted = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)
    # A partition cannot tell apart more than its ids.
    assert (found.kd <= loss_of(student, teacher, form, backend, beta=beta).kd + 1e-12).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_tail_of_no_id_is_the_teacher_itself(form, backend):
    """1 − Σq of all ids is rounding, and no mass that the student bans."""
    student, teacher = (each.float().detach() for each in pair(5, 9, 1.5))
    ids = torch.arange(9).expand(5, 9).contiguous()
    listed = SparseTeacher(ids, teacher.log_softmax(-1) - 1e-7, "tail")
    found = loss_of(student, listed, form, backend, beta=BETAS.get(form))
    whole = loss_of(student, teacher, form, backend, beta=BETAS.get(form))
    torch.testing.assert_close(found.kd, whole.kd, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_tail_that_the_student_bans(form, backend):
    """Of one id or of several it is what a dense teacher's one banned id is."""
    found = []
    for banned in (1, 3):
        student = torch.full((2, 3 + banned), -INF, dtype=torch.float64)
        student[:, :3] = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.5]])
        log_q = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.2, 0.2, 0.2, 0.4]]).double().log()
        teacher = [SparseTeacher(torch.arange(3).expand(2, 3), log_q[:, :3], "tail")]
        for each in teacher + [log_q] * (banned == 1):
            learned = student.clone().requires_grad_()
            result = loss_of(learned, each, form, backend, beta=BETAS.get(form))
            (gradient,) = torch.autograd.grad(result.loss.sum(), learned)
            assert gradient[:, 3:].eq(0).all()
            found.append((result.kd, gradient[:, :3]))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [True, False])
def test_padding_that_repeats_an_id_is_not_ranked(backend, first):
    student, teacher = pair(5, 9, 1.5)
    values, ids = teacher.log_softmax(-1).topk(4)
    extra = (ids[:, :1], torch.full_like(values[:, :1], -INF))
    pairs = zip(extra, (ids, values), strict=True)
    joined = [torch.cat(both if first else both[::-1], 1) for both in pairs]
    found = [
        loss_of(student, SparseTeacher(*each, "drop"), "kl", backend, rank_weight=1.0, top_k=3)
        for each in ((ids, values), joined)
    ]
    assert found[0].rank.gt(0).any()
    torch.testing.assert_close(found[0].rank, found[1].rank, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_banned_ids(backend):
    both, student_bans, teacher_bans = range(3)
    student = torch.tensor([[0.0, -INF, 1.0, 2.0], [0.0, -INF, 1.0, 2.0], [0.5, 1.0, 2.0, 0.0]])
    teacher = torch.tensor([[1.0, -INF, 0.0, 2.0], [1.0, 0.5, 0.0, 2.0], [1.0, -INF, 0.0, 2.0]])
    student = student.double().requires_grad_()
    teacher = teacher.double()
    p, q = student.detach().softmax(-1), teacher.softmax(-1)
    for form in FORMS:
        beta = BETAS.get(form)
        found = loss_of(student, teacher, form, backend, beta=beta)
        expected = by_definition(q, p, form, beta)
        torch.testing.assert_close(found.kd, expected)
        assert found.kd[student_bans].isfinite() == (form != "kl")
        assert found.kd[teacher_bans].isfinite() == (form != "reverse_kl")
        assert found.kd[both].isfinite()
        gradient = torch.autograd.grad(found.loss.sum(), student)[0]
        assert gradient.isfinite().all()
        assert (gradient[student == -INF] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_nothing_to_compare(backend):
    nothing, some = torch.full((4,), -INF), torch.arange(4.0)
    student = torch.stack([nothing, nothing, some]).requires_grad_()
    teacher = torch.stack([nothing, some, nothing])
    for form in FORMS:
        found = loss_of(student, teacher, form, backend, entropy_weight=0.1)
        assert found.kd.tolist() == [0, INF if form == "kl" else 0, 0]
        assert found.entropy[:2].eq(0).all() and found.entropy[2] > 0
        masked = loss_of(
            student, teacher, form, backend, entropy_weight=0.1, reduction="sum",
            mask=torch.zeros(3, dtype=torch.bool),
        )  # fmt: skip
        assert masked.loss == 0
        (gradient,) = torch.autograd.grad(masked.loss, student)
        assert gradient.eq(0).all()


@given(call=calls(4, 40))
@settings(max_examples=150, deadline=None)
def test_torch_against_the_reference(call):
    torch.manual_seed(call["seed"])
    make, width, size = {"dtype": torch.float64}, 3, call["vocabulary"]
    n = call["options"]["vocabulary"] or size
    learned = [torch.randn(7, width, **make), torch.randn(size, width, **make)]
    learned.append(torch.randn(size, **make).masked_fill(torch.rand(size) < call["banned"], -INF))
    target, mask = torch.randint(n, (7,)), torch.rand(7) >= call["masked"]
    if not call["linear"]:
        learned = [torch.addmm(learned[2], learned[0], learned[1].t())]
    learned = [each.requires_grad_() for each in learned]
    teacher = torch.randn(7, n, **make) * 2
    teacher = teacher.masked_fill(torch.rand(teacher.shape) < call["banned"], -INF)
    if call["rest"]:
        values, ids = teacher.nan_to_num(neginf=-9.0).log_softmax(-1).topk(3)
        teacher = SparseTeacher(ids, values, call["rest"])
    found, gradients = [], []
    for backend in BACKENDS:
        options = call["options"] | {"mask": mask, "target": target, "backend": backend}
        if not call["linear"]:
            result = token_distillation_loss(learned[0], teacher, **options)
        else:
            theirs = {"teacher_hidden": teacher}
            if not call["rest"]:
                theirs["teacher_weight"] = torch.eye(n, **make)
                theirs["teacher_hidden"] = teacher.clamp(min=-30)
            result = linear_token_distillation_loss(
                *learned[:2], student_bias=learned[2], **theirs, **options
            )
        found.append(result)
        gradients.append(torch.autograd.grad(result.loss.sum() * 3, learned))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "js"}, "divergence must be one of kl, reverse_kl"),
        ({"divergence": "jsd", "beta": 0.0}, "take divergence='kl' or 'reverse_kl'"),
        ({"divergence": "jsd", "beta": 1.0}, "take divergence='kl' or 'reverse_kl'"),
        ({"divergence": "skew_kl", "beta": 1.0}, "beta of skew_kl must be at least 0 and below 1"),
        ({"divergence": "tvd", "beta": 0.5}, "beta belongs to jsd, skew_kl, skew_reverse_kl"),
        ({"entropy_weight": INF}, "entropy_weight must be a finite number"),
    ],
)
def test_values_that_do_not_fit(options, message):
    student, teacher = pair()
    with pytest.raises(InputError, match=message):
        token_distillation_loss(student, teacher, ce_weight=0, kd_weight=1, **options)


@pytest.mark.parametrize(
    ("rest", "form", "options"),
    [(rest, form, {}) for rest, form in
     [("drop", form) for form in FORMS[1:]] + [("renormalize", "reverse_kl")]]
    + [("renormalize", "skew_reverse_kl", {"beta": 0.0})],
)  # fmt: skip
def test_pairs_of_list_and_divergence_without_a_value(rest, form, options):
    student, teacher = pair()
    values, ids = teacher.log_softmax(-1).topk(3)
    with pytest.raises(InputError, match=f"needs rest='spread' or .*'tail', not '{rest}'"):
        loss_of(student, SparseTeacher(ids, values, rest), form, **options)
