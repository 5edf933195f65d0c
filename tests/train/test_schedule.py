import math

import pytest

from fastkd.config.tree import OptimizerConfig
from fastkd.train.schedule import learning_rate


def rates(schedule, updates, total=100):
    config = OptimizerConfig(lr=2.0, warmup=10, schedule=schedule)
    return [learning_rate(config, update, total) for update in updates]


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert rates(schedule, [1, 5, 10]) == pytest.approx([0.2, 1.0, 2.0])


def test_inverse_square_root():
    assert rates("inverse_sqrt", [40, 90]) == pytest.approx([1.0, 2.0 / 3])


def test_cosine_ends_at_zero():
    middle = 2.0 * 0.5 * (1 + math.cos(math.pi / 2))
    assert rates("cosine", [55, 100, 120]) == pytest.approx([middle, 0.0, 0.0])


def test_constant():
    assert rates("constant", [50]) == [2.0]
