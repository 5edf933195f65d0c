"""A2D training takes the same course whatever backend computes its losses."""

import dataclasses

import pytest
import torch

from fastkd.bench.training import SCALES, configure, update_of
from fastkd.config.tree import A2D
from fastkd.memory.step.training_step import TrainingStep
from fastkd.memory.step.workload import Vocabulary

UPDATES = 5


def losses(backend: str, normalization: str) -> list[float]:
    scale = dataclasses.replace(SCALES["smoke"], batch_tokens=24)
    config, teacher = configure(scale, "A2D", backend)
    terms = [
        dataclasses.replace(term, normalization=normalization) if isinstance(term, A2D) else term
        for term in config.losses
    ]
    model = dataclasses.replace(config.model, dropout=0.0)
    config = dataclasses.replace(config, losses=terms, model=model)
    vocabulary = Vocabulary.of_sizes(scale.vocabulary, scale.vocabulary)
    step = TrainingStep(config, vocabulary, teacher, torch.device("cpu"))
    update = update_of(scale)
    pieces = update.pieces(1, vocabulary)
    return [float(step(update, pieces).components["loss"]) for _ in range(UPDATES)]


@pytest.mark.parametrize("backend, normalization", [
    ("torch", "mixture"), ("torch", "row"), ("torch", "map"),
    pytest.param("triton", "mixture", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_course_of_training(backend, normalization, monkeypatch):
    expected = losses("reference", normalization)
    monkeypatch.setenv("FASTKD_NATIVE", "always")
    assert losses(backend, normalization) == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
