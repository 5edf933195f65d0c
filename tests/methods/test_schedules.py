"""Losses whose weights and passes change over training."""

import dataclasses

import pytest
import torch

from fastkd.config.schedule import RepeatsSchedule, Schedule
from fastkd.losses import A2D, CrossEntropy, HiddenStates, TieKD, WordKD
from tests.methods.test_objective import a_batch, counts_of, models, objective_of

pytestmark = pytest.mark.usefixtures("in_float64")
LATE = Schedule(value=0.5, begin=3)


def result(losses, update, epoch=1):
    """Loss, components and the student's gradients in an update; everything learned is the same."""
    student, teacher = models()
    batch = a_batch()
    torch.manual_seed(2)
    objective = objective_of(*losses, teacher=teacher)
    counts = dataclasses.replace(counts_of(batch), update=update)
    loss, parts = objective(student, batch, counts, epoch)
    loss.backward()
    return loss.detach(), parts, [parameter.grad for parameter in student.parameters()]


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert one[1].keys() == other[1].keys()
    for ours, theirs in zip(one[2], other[2], strict=True):
        if ours is None or theirs is None:  # a loss that is left out leaves no gradient
            assert ours is None or not ours.any()
            assert theirs is None or not theirs.any()
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [WordKD, TieKD, A2D, HiddenStates])
def test_a_loss_that_begins_late(loss):
    ce = CrossEntropy(weight=0.5)
    assert_same(result([ce, loss(weight=LATE)], update=3), result([ce], update=3))
    assert_same(result([ce, loss(weight=LATE)], 4), result([ce, loss(weight=0.5)], 4))


def test_cross_entropy_that_ends_early():
    ending = CrossEntropy(weight=Schedule(value=0.5, end=2))
    assert_same(result([ending, WordKD()], 2), result([CrossEntropy(weight=0.5), WordKD()], 2))
    assert_same(result([ending, WordKD()], 3), result([WordKD()], 3))


def test_nothing_left_in_an_update():
    loss, parts, _ = result([CrossEntropy(weight=LATE)], update=1)
    assert loss == 0
    assert parts == {}


def test_two_stages_of_ranking_and_passes():
    passes = RepeatsSchedule(value=3, begin=3)
    both = TieKD(weight=0.8, rank_weight=Schedule(value=1.0, begin=3), iterations=passes)
    first, second = (
        TieKD(weight=0.8, rank_weight=0.0, iterations=1),
        TieKD(weight=0.8, rank_weight=1.0, iterations=3),
    )
    assert_same(result([both], 3), result([first], 3))
    assert_same(result([both], 4), result([second], 4))


def test_by_epoch():
    weight = Schedule(value=1.0, begin=1, by="epoch")
    assert_same(result([CrossEntropy(), WordKD(weight=weight)], 9, 1), result([CrossEntropy()], 9))
    assert_same(
        result([CrossEntropy(), WordKD(weight=weight)], 9, 2),
        result([CrossEntropy(), WordKD(weight=1.0)], 9),
    )


def test_what_a_loss_learns_has_gradients_of_zero_before_it_begins():
    student, teacher = models()
    objective = objective_of(CrossEntropy(), A2D(weight=LATE), teacher=teacher)
    batch = a_batch()
    objective(student, batch, dataclasses.replace(counts_of(batch), update=1), 1)[0].backward()
    for parameter in objective.parameters():
        assert not parameter.grad.any()


def test_values_by_name():
    _, teacher = models()
    loss = TieKD(rank_weight=LATE, iterations=RepeatsSchedule(value=3, begin=2))
    objective = objective_of(CrossEntropy(), loss, teacher=teacher)
    assert objective.scheduled(3, 1) == {"tie_kd.rank_weight": 0.0, "tie_kd.iterations": 3}
