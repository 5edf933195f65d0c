"""How long a demo will take, before it begins."""

import dataclasses

import pytest

from fastkd.data.prepare import prepare
from fastkd.demo.estimate import estimated_seconds, in_words
from fastkd.demo.language import write_corpus
from fastkd.demo.run import demo_config, tell_estimate


@pytest.fixture
def folder(tmp_path):
    write_corpus(tmp_path / "corpus", pairs=400, dev=20, test=20)
    prepare(demo_config(tmp_path, "teacher"))
    return tmp_path


def test_all_models_are_told_with_their_updates(folder):
    said = []
    tell_estimate(folder, ["student", "tie_kd"], said.append)
    assert said[0] == "timing a few updates of 2 models"
    assert said[1].startswith("2 models, 800 updates: about ")


def test_more_updates_take_longer(folder):
    config, teacher = demo_config(folder, "student"), demo_config(folder, "teacher").model
    longer = dataclasses.replace(
        config, training=dataclasses.replace(config.training, updates=40_000)
    )
    short, long = (
        estimated_seconds({"student": c}, teacher, lambda text: None) for c in (config, longer)
    )
    assert 10 * short < long


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "10 seconds"), (44, "40 seconds"), (100, "2 minutes")]
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words
