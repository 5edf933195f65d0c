"""The torch token losses against the reference, over shapes, options and patterns of −inf."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkd import SparseTeacher, linear_token_distillation_loss, token_distillation_loss
from fastkd.backends.tokens.torch import chunk, positions
from fastkd.backends.tokens.torch.topk import BLOCK, top_ids

INF = math.inf


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """A few rows each, so that every walk has several chunks, the last one shorter."""
    monkeypatch.setattr(positions, "CHUNK", 64)


@st.composite
def calls(draw):
    """Everything of a call but its logits: a seed, sizes, patterns and options."""
    sides = {"student": draw(st.sampled_from([0.0, 0.0, 0.2])), "teacher": 0.0}
    sides["teacher"] = draw(st.sampled_from([0.0, sides["student"], 0.3]))
    vocabulary = draw(st.integers(1, 40))
    weights = draw(
        st.sampled_from(
            [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.5, 0), (0.5, 0, 2), (0.3, 0.7, 1.1)]
        )
    )
    return {
        "seed": draw(st.integers(0, 2**16)),
        "positions": draw(st.sampled_from([(), (1,), (7,), (2, 3), (3, 1, 2)])),
        "vocabulary": vocabulary,
        "banned": sides,
        "ties": draw(st.booleans()),
        "masked": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "use": draw(st.sampled_from(["mask", "ignore_index", "both"])),
        "teacher": draw(st.sampled_from(["dense", "drop", "spread", "renormalize"])),
        "options": {
            "ce_weight": weights[0],
            "kd_weight": weights[1],
            "rank_weight": weights[2],
            "top_k": draw(st.integers(1, min(vocabulary, 6))),
            "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
            "student_temperature": draw(st.sampled_from([1.0, 1.0, 2.0, 0.5])),
            "teacher_temperature": draw(st.sampled_from([1.0, 1.0, 3.0, 0.7])),
            "reduction": draw(st.sampled_from(["sum", "mean", "none"])),
            "return_prediction": draw(st.booleans()),
        },
    }


def logits_of(call, side: str, dtype=torch.float64) -> torch.Tensor:
    shape = (*call["positions"], call["vocabulary"])
    logits = torch.randn(shape, dtype=dtype) * 2
    if call["ties"]:
        logits = (logits * 2).round() / 2
    return logits.masked_fill(torch.rand(shape) < call["banned"][side], -INF)


def constants_of(call, teacher: torch.Tensor):
    """Teacher, target and mask."""
    vocabulary, where = call["vocabulary"], call["positions"]
    if call["teacher"] != "dense":
        # A row without any finite logit has no log-probabilities. What is not listed keeps a mass
        # far above the rounding of 1 − Σq, which a temperature would blow up.
        teacher = teacher.nan_to_num(neginf=-12.0)
        if call["teacher"] == "spread":  # an unlisted id that ties with a listed one, but for
            teacher = teacher + 0.01 * torch.rand(teacher.shape)  # rounding, has either order
        log_probs = torch.log_softmax(teacher, -1)
        listed = min(max(call["options"]["top_k"], 3), vocabulary)
        values, ids = log_probs.topk(listed)
        teacher = SparseTeacher(ids, values, call["teacher"])
    target = torch.randint(vocabulary, where)
    masked = torch.rand(where) < call["masked"]
    mask = ~masked if call["use"] != "ignore_index" else None
    if call["use"] != "mask":
        target = target.masked_fill(masked, -100)
    return teacher, target, mask


@given(call=calls())
@settings(max_examples=100, deadline=None)
def test_dense(call):
    torch.manual_seed(call["seed"])
    student = logits_of(call, "student").requires_grad_()
    teacher, target, mask = constants_of(call, logits_of(call, "teacher"))
    upstream = torch.rand(call["positions"], dtype=torch.float64)
    results, grads = [], []
    for backend in ("reference", "torch"):
        result = token_distillation_loss(
            student, teacher, target, mask=mask, backend=backend, **call["options"]
        )
        weight = upstream if call["options"]["reduction"] == "none" else torch.tensor(3.0).double()
        results.append(result)
        grads += torch.autograd.grad(result.loss, student, weight)
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-9)


@given(call=calls(), bias=st.booleans(), width=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_linear(call, bias, width):
    torch.manual_seed(call["seed"])
    shape, make = (call["vocabulary"], width), {"dtype": torch.float64}
    hidden = torch.randn(*call["positions"], width, **make)
    weight = torch.randn(shape, **make)
    learned = [hidden, weight, torch.randn(shape[0], **make)] if bias else [hidden, weight]
    if bias:
        learned[2][torch.rand(shape[0]) < call["banned"]["student"]] = -INF
    learned = [each.requires_grad_() for each in learned]
    teacher, target, mask = constants_of(call, logits_of(call, "teacher"))
    theirs = {"teacher_hidden": teacher}
    if call["teacher"] == "dense":
        # A teacher of another width, whose own bias bans ids too.
        theirs = {
            "teacher_hidden": torch.randn(*call["positions"], width + 2, **make),
            "teacher_weight": torch.randn(shape[0], width + 2, **make),
            "teacher_bias": torch.randn(shape[0], **make) if bias else None,
        }
        if bias:
            theirs["teacher_bias"][torch.rand(shape[0]) < call["banned"]["teacher"]] = -INF
    results, grads = [], []
    for backend in ("reference", "torch"):
        result = linear_token_distillation_loss(
            *learned[:2], target=target, student_bias=learned[2] if bias else None, mask=mask,
            backend=backend, **theirs, **call["options"],
        )  # fmt: skip
        results.append(result)
        grads.append(torch.autograd.grad(result.loss.sum() * 3, learned))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(
    vocabulary=st.sampled_from([5, BLOCK, 4 * BLOCK, 8 * BLOCK + 1, 12 * BLOCK - 1, 20 * BLOCK]),
    k=st.integers(1, 5),
    values=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_top_ids_are_those_of_a_stable_sort(dtype, vocabulary, k, values, seed):
    torch.manual_seed(seed)
    # Few different values: −inf, both zeros and many ties, across blocks and within.
    palette = torch.tensor([-INF, -0.0, 0.0, -1.0, 1.0, 2.5])[torch.randperm(6)[:values]]
    scores = palette[torch.randint(values, (3, vocabulary))].to(dtype).float()
    if dtype == torch.float64:
        scores = scores.double()
    found, ids = top_ids(scores, k)
    expected = scores.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids, expected.indices[:, :k])
    assert torch.equal(found, expected.values[:, :k])


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({}, True),
        ({"return_prediction": True}, False),
        ({"rank_weight": 1.0}, False),
        ({"vocabulary": 7}, False),
        ({"student_temperature": 2.0}, False),
        ({"student_temperature": 2.0, "ce_weight": 0.0}, True),
    ],
)
def test_logits_are_looked_at_only_where_an_answer_changes_the_way(options, looks, monkeypatch):
    looked = []
    monkeypatch.setattr(chunk, "serves", lambda *given: looked.append(given) or False)
    token_distillation_loss(
        torch.randn(3, 9), torch.randn(3, 9), torch.arange(3),
        **({"ce_weight": 1.0, "kd_weight": 1.0, "divergence": "tvd", "backend": "torch"} | options),
    )  # fmt: skip
    assert bool(looked) == looks
