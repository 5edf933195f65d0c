"""A training step on a CPU, by each method."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastkd.bench.training import METHODS, Scale, configure, update_of
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Vocabulary

SCALE = Scale("regression", 128, 512, 4, 2, 4000, 512)


@pytest.mark.parametrize("method", METHODS)
def test_training_step(benchmark: BenchmarkFixture, method: str) -> None:
    config, teacher = configure(SCALE, method, "torch")
    vocabulary = Vocabulary.of_sizes(SCALE.vocabulary, SCALE.vocabulary)
    step = TrainingStep(config, vocabulary, teacher, torch.device("cpu"))
    update = update_of(SCALE)
    pieces = update.pieces(1, vocabulary)
    benchmark.pedantic(lambda: step(update, pieces), rounds=5, warmup_rounds=1)
