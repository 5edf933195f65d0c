"""Errors of the torch token losses against float64, beside those of plain PyTorch."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional as F

from fastkd import linear_token_distillation_loss, token_distillation_loss
from fastkd.backends.tokens.torch import positions, rows
from fastkd.backends.tokens.torch.dense_teacher import DenseRows
from tests.kernels.tokens_compare import assert_as_exact_as_reference
from tests.tokens_drawn import calls, prepared

# Both compute the same formula with as many roundings, in another order: their errors agree but
# for chance, which over a thousand values leaves room for far less than a half.
RATIO = 1.5
ROWS, WIDTH, VOCABULARY = 512, 32, 500


def rms(value: torch.Tensor) -> float:
    return value.double().square().mean().sqrt().item()


def outputs(backend, inputs, dtype, autocast=False, **options):
    """ce, kd, rank of each row, and the gradients of the sum by hidden states, weight and bias."""
    hidden, weight, bias, teacher, teacher_weight, target = (
        each.to(dtype) if each.is_floating_point() else each for each in inputs
    )
    leaves = [each.detach().requires_grad_() for each in (hidden, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        each, summed = (
            linear_token_distillation_loss(
                *leaves[:2], teacher, teacher_weight, target, student_bias=leaves[2],
                reduction=reduction, backend=backend, **options,
            )
            for reduction in ("none", "sum")
        )  # fmt: skip
    gradients = torch.autograd.grad(summed.loss, leaves)
    assert all(g.dtype == dtype for g in gradients)
    inside = torch.float64 if dtype == torch.float64 else torch.float32
    assert each.loss.dtype == summed.loss.dtype == inside
    parts = {"ce": each.ce, "kd": each.kd, "rank": each.rank, "entropy": each.entropy}
    return parts | dict(zip(("hidden", "weight", "bias"), gradients, strict=True))


def inputs_of(dtype, offset=0.0, sharpness=1.0, close=False):
    """In float64, of values that `dtype` can hold; `close`: the teacher is nearly the student."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH) * sharpness
    weight, bias = torch.randn(VOCABULARY, WIDTH) / 4, torch.randn(VOCABULARY) + offset
    teacher, teacher_weight = torch.randn(ROWS, WIDTH) * sharpness, torch.randn_like(weight) / 4
    if close:
        teacher, teacher_weight, bias = hidden + 0.01 * teacher, weight, 0 * bias
    found = [hidden, weight, bias, teacher, teacher_weight]
    return [each.to(dtype).double() for each in found] + [torch.randint(VOCABULARY, (ROWS,))]


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.bfloat16, False),
        (torch.float16, False),
    ],
    ids=["float32", "autocast", "bfloat16", "float16"],
)
@pytest.mark.parametrize(
    "case",
    [{}, {"offset": 100.0}, {"sharpness": 10.0}, {"close": True}],
    ids=["plain", "offset", "sharp", "close"],
)
def test_errors_are_those_of_plain_pytorch(monkeypatch, dtype, autocast, case):
    monkeypatch.setattr(positions, "CHUNK", 64 * VOCABULARY)  # eight chunks are added up
    inputs = inputs_of(torch.bfloat16 if autocast else dtype, **case)
    options = {"ce_weight": 1, "kd_weight": 1, "label_smoothing": 0.1}
    truth = outputs("reference", inputs, torch.float64, **options)
    plain = outputs("reference", inputs, dtype, autocast, **options)
    ours = outputs("torch", inputs, dtype, autocast, **options)
    for name in ("ce", "kd", "hidden", "weight", "bias"):
        error, usual = rms(ours[name] - truth[name]), rms(plain[name] - truth[name])
        assert usual > 0 and error <= RATIO * usual, (name, error, usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "case", [{}, {"sharpness": 10.0}, {"close": True}], ids=["plain", "sharp", "close"]
)
@pytest.mark.parametrize(
    ("form", "beta"),
    [("reverse_kl", None), ("jsd", 0.5), ("jsd", 0.3), ("jsd", 0.01), ("skew_kl", 0.1),
     ("skew_reverse_kl", 0.1), ("tvd", None)],
)  # fmt: skip
def test_errors_of_divergences_are_those_of_plain_pytorch(monkeypatch, dtype, case, form, beta):
    monkeypatch.setattr(positions, "CHUNK", 64 * VOCABULARY)
    inputs = inputs_of(dtype, **case)
    options = {"ce_weight": 0.5, "kd_weight": 1.0, "entropy_weight": 0.1, "divergence": form}
    options |= {"beta": beta, "student_temperature": 1.0, "teacher_temperature": 1.5}
    truth, plain, ours = (
        outputs(backend, inputs, kind, **options)
        for backend, kind in
        (("reference", torch.float64), ("reference", dtype), ("torch", dtype))
    )  # fmt: skip
    for name in ("ce", "kd", "entropy", "hidden", "weight", "bias"):
        error, usual = rms(ours[name] - truth[name]), rms(plain[name] - truth[name])
        assert usual > 0 and error <= RATIO * usual, (name, error, usual)


@given(call=calls())
@settings(max_examples=100, deadline=None)
def test_every_option_crossed(call):
    loss, learned, constants, options = prepared(call)
    assert_as_exact_as_reference(loss, learned, *constants, backend="torch", **options)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("beta", [1e-30, 1e-12, 1e-6, 1e-3, 0.05, 0.95, 1 - 1e-6, 1 - 1e-12])
@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_jsd_near_its_ends(backend, beta, scale):
    """Of the size of the value itself, which is that of β: not only small beside 1."""
    torch.manual_seed(0)
    student, teacher = (scale * torch.randn(4, 40) for _ in range(2))
    student[1, 3] = teacher[2, 5] = student[3, 7] = teacher[3, 7] = -math.inf
    found = []
    for kind, by in ((torch.float32, backend), (torch.float64, "reference")):
        leaf = student.to(kind).requires_grad_()
        kd = token_distillation_loss(
            leaf, teacher.to(kind), ce_weight=0.0, kd_weight=1.0, divergence="jsd", beta=beta,
            reduction="none", backend=by,
        ).loss  # fmt: skip
        found.append((kd.detach().double(), torch.autograd.grad(kd.sum(), leaf)[0].double()))
    (own, gradient), (exact, wanted) = found
    log_q = teacher.double().log_softmax(-1)
    least = min(beta, 1 - beta)
    depth = log_q.where(log_q.isfinite(), 0).abs().max().item() - math.log(least)
    units = 2 * depth * torch.finfo(torch.float32).eps
    torch.testing.assert_close(own, exact, rtol=units, atol=0)
    # p·(share − Σ p·share) of shares of that size.
    size = wanted.abs().amax(-1) + least
    assert ((gradient - wanted).abs().amax(-1) <= units * size).all()


def nearly_tied_inputs():
    """Each odd row of a weight is nearly the even row before it, and so are their logits."""
    inputs = inputs_of(torch.float32)
    for weight in (inputs[1], inputs[4]):
        weight[1::2] = weight[::2] * (1 + 2e-7 * torch.randn(VOCABULARY // 2, 1))
    inputs[2][1::2] = inputs[2][::2]
    inputs[0][::2] *= 0.5
    return [each.float().double() for each in inputs[:5]] + inputs[5:]


RANKED = {"ce_weight": 0, "kd_weight": 0, "rank_weight": 1, "top_k": 4}


def test_ranking_where_gaps_exceed_the_error_of_the_logits(monkeypatch):
    monkeypatch.setattr(positions, "CHUNK", 64 * VOCABULARY)
    inputs = inputs_of(torch.float32)
    logits = {
        dtype: [F.linear(*(x.to(dtype) for x in side)) for side in (inputs[:3], inputs[3:5])]
        for dtype in (torch.float32, torch.float64)
    }
    student, teacher = logits[torch.float64]
    error = 2 * max(float((a - b).abs().max()) for a, b in zip(*logits.values(), strict=True))
    ids = [side.topk(RANKED["top_k"]).indices for side in (student, teacher)]
    gaps = [
        side.topk(RANKED["top_k"] + 1).values.diff().abs().amin(-1)
        for side in logits[torch.float64]
    ]
    scores = [teacher.gather(1, each) for each in ids]
    apart = (scores[1].unsqueeze(-1) - scores[0].unsqueeze(-2)).abs()
    apart = apart.where(ids[1].unsqueeze(-1) != ids[0].unsqueeze(-2), torch.inf)
    clear = (torch.stack([*gaps, apart.amin((-2, -1))]) > error).all(0)
    assert clear.sum() > 0.9 * ROWS
    truth = outputs("reference", inputs, torch.float64, **RANKED)
    plain = outputs("reference", inputs, torch.float32, **RANKED)
    ours = outputs("torch", inputs, torch.float32, **RANKED)
    for name in ("rank", "hidden"):
        errors = [rms((found[name] - truth[name])[clear]) for found in (ours, plain)]
        assert errors[1] > 0 and errors[0] <= RATIO * errors[1], (name, errors)


def test_ranking_of_given_ids(monkeypatch):
    # Nearly equal logits change places in float32, and the loss jumps: give all the same ids.
    inputs = nearly_tied_inputs()
    student, teacher = F.linear(*inputs[:3]), F.linear(*inputs[3:5])
    k = RANKED["top_k"]
    ids = [side.topk(k).indices for side in (student, teacher)]
    preferred = teacher.gather(1, ids[1]).unsqueeze(-1) > teacher.gather(1, ids[0]).unsqueeze(-2)

    def formula(dtype):
        leaves = [each.to(dtype).requires_grad_() for each in inputs[:3]]
        p = F.linear(*leaves).softmax(-1)
        p_s, p_t = p.gather(1, ids[0]), p.gather(1, ids[1])
        pairs = F.relu(p_s.unsqueeze(-2) - p_t.unsqueeze(-1)) * preferred
        rank = F.relu(p_t - p_t[:, :1]).sum(-1) + pairs.sum((-2, -1))
        return rank.detach(), *torch.autograd.grad(rank.sum(), leaves)

    monkeypatch.setattr(rows, "top_ids", lambda logits, k: (logits.gather(1, ids[0]), ids[0]))
    monkeypatch.setattr(DenseRows, "choose", lambda *_: (ids[1], preferred))
    ours = outputs("torch", inputs, torch.float32, **RANKED)
    names = ("rank", "hidden", "weight", "bias")
    for name, exact, plain in zip(
        names, formula(torch.float64), formula(torch.float32), strict=True
    ):
        errors = [rms(found - exact) for found in (ours[name], plain)]
        assert errors[1] > 0 and errors[0] <= RATIO * errors[1], (name, errors)
