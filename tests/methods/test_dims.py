"""DiMS against its formulas written out literally, in float64, and its moving teacher."""

import dataclasses

import pytest
import torch

from fastkd.config.schedule import Schedule
from fastkd.config.tree import A2D, DiMS, MaskedCrossEntropy
from tests.methods.masked_model import (
    ALLOWED,
    CONFIG,
    MASK,
    a_batch,
    a_model,
    counts_of,
    masks,
    objective_of,
    places,
    run_one,
    sentence,
)

pytestmark = pytest.mark.usefixtures("in_float64")


def literal_teacher(model, batch, b, masked, steps, reconsider=True):
    """States and logits after n steps, at the masked places, in plain lists."""
    target = sentence(batch, b)
    hidden_places = places(masked[b])
    u = len(hidden_places)
    shown = [MASK if i in hidden_places else piece for i, piece in enumerate(target)]
    for j in range(1, steps + 1):
        new_hidden, new_logits = run_one(model, batch, b, shown)
        if j == 1:
            hidden, logits = new_hidden.clone(), new_logits.clone()
        for i in hidden_places:
            if reconsider or shown[i] == MASK:
                hidden[i], logits[i] = new_hidden[i], new_logits[i]
        log_p = logits.log_softmax(-1)
        for i in hidden_places:
            shown[i] = ALLOWED[int(log_p[i].argmax())]
        count = -(-(steps - j) * u // steps)  # ceil((n − j) · u / n)
        for i in sorted(hidden_places, key=lambda i: (float(log_p[i].max()), i))[:count]:
            shown[i] = MASK
    return hidden[hidden_places], logits[hidden_places], hidden_places


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize(("steps", "mask"), [(1, "random"), (2, "random"), (3, "full")])
@pytest.mark.parametrize("reconsider", [True, False])
def test_dims(steps, mask, labels, reconsider):
    student, teacher = a_model(1), a_model(2)
    batch = a_batch()
    config = DiMS(
        reconsider=reconsider,
        weight=3.0,
        steps=steps,
        mask=mask,
        labels=labels,
        student_temperature=1.5,
        hidden_weight=0.4,
    )
    objective = objective_of(config, teacher=teacher)
    loss, parts = objective(student, batch, counts_of(objective, batch), 1)
    masked = masks(batch, mask)
    divergences, distances = [], []
    with torch.no_grad():
        for b in range(len(batch)):
            hidden, logits, hidden_places = literal_teacher(
                teacher, batch, b, masked, steps, reconsider
            )
            target = sentence(batch, b)
            shown = [MASK if i in hidden_places else piece for i, piece in enumerate(target)]
            own_hidden, own_logits = run_one(student, batch, b, shown)
            for row, place in enumerate(hidden_places):
                z_t, z_s = logits[row], own_logits[place]
                log_q, log_p = (z_t / 0.5).log_softmax(-1), (z_s / 1.5).log_softmax(-1)
                if labels == "soft":
                    divergences.append((log_q.exp() * (log_q - log_p)).sum())
                else:
                    divergences.append(-z_s.log_softmax(-1)[z_t.argmax()])
                distances.append((hidden[row] - own_hidden[place]).square().sum().sqrt())
    divergence, distance = torch.stack(divergences).mean(), torch.stack(distances).mean()
    torch.testing.assert_close(parts["dims"], divergence)
    # distances are taken in float32
    torch.testing.assert_close(parts["dims.hidden"].double(), distance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        loss.detach(), 3.0 * (divergence + 0.4 * distance), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("update", "weight"), [(3, 0.0), (4, 0.7)])
def test_a_hidden_weight_that_begins_late(update, weight):
    def loss(hidden_weight):
        batch = a_batch()
        config = DiMS(hidden_weight=hidden_weight, ema=0.0)
        objective = objective_of(config, teacher=a_model(2))
        counts = dataclasses.replace(counts_of(objective, batch), update=update)
        return objective, objective(a_model(1), batch, counts, 1)[0]

    scheduled, late = loss(Schedule(value=0.7, begin=3))
    assert scheduled.scheduled(update, 1) == {"dims.hidden_weight": weight}
    torch.testing.assert_close(late, loss(weight)[1], rtol=0, atol=0)


def test_equal_states_have_a_finite_gradient():
    """At the start student and teacher are equal, and the norm's gradient is 0/0."""
    student = a_model(1)
    batch = a_batch()
    objective = objective_of(DiMS(steps=1, ema=0.0), teacher=a_model(1))
    loss, parts = objective(student, batch, counts_of(objective, batch), 1)
    loss.backward()
    assert parts["dims.hidden"] == 0
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("dropout", [False, True])
def test_dims_student_has_dropout_only_where_asked_for(dropout):
    config = dataclasses.replace(CONFIG, dropout=0.5)
    student = a_model(1, config).train()
    batch = a_batch()
    objective = objective_of(
        DiMS(dropout=dropout), teacher=a_model(2, config), model=config, teacher_config=config
    )
    counts = counts_of(objective, batch)
    first, second = (objective(student, batch, counts, 1)[0] for _ in range(2))
    assert (first != second) == dropout
    assert not objective.teacher.training


def test_a_new_student_is_the_teacher():
    student, teacher = a_model(1), a_model(2)
    objective_of(DiMS(), teacher=teacher).begin(student)
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, theirs[name])
    assert {"length.weight", "source_embedding.weight"} <= theirs.keys()


def test_other_students_keep_their_weights():
    student, same = a_model(1), a_model(1)
    objective_of(MaskedCrossEntropy(), A2D(), teacher=a_model(2)).begin(student)
    for one, other in zip(student.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_teacher_follows_the_student_in_float32():
    student, teacher = a_model(1), a_model(2).float()
    before = [p.detach().clone() for p in teacher.parameters()]
    objective = objective_of(DiMS(ema=0.75), teacher=teacher)
    for _ in range(3):
        objective.before_update(student)
    for average, start, own in zip(teacher.parameters(), before, student.parameters(), strict=True):
        expected = 0.75**3 * start.double() + (1 - 0.75**3) * own.detach()
        assert average.dtype == torch.float32
        # three roundings of values below 4
        torch.testing.assert_close(average.double(), expected, atol=3 * 2.4e-7, rtol=0)


def test_only_a_teacher_that_moves_is_state():
    teacher = a_model(2)
    names = {f"teacher.{name}" for name, _ in teacher.named_parameters()}
    assert objective_of(DiMS(), teacher=teacher).moving_tensors().keys() == names
    assert objective_of(DiMS(ema=0.0), teacher=teacher).moving_tensors() == {}
    assert objective_of(MaskedCrossEntropy()).moving_tensors() == {}
    before = [p.clone() for p in teacher.parameters()]
    objective_of(DiMS(ema=0.0), teacher=teacher).before_update(a_model(1))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
