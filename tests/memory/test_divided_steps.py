"""What is predicted of one of several processes that share a step."""

import dataclasses
import json

import pytest

from fastkd import InputError
from fastkd.memory.step.predict import predict_step
from fastkd.memory.step.report import StepMemory
from tests.together import together

pytest.importorskip("transformers", minversion="5.1")
from tests.memory import divided_steps


@pytest.mark.slow
def test_is_what_two_processes_measure(tmp_path):
    together(2, "tests.memory.divided_steps", str(tmp_path), timeout=600)
    found = json.loads((tmp_path / "found.json").read_text())
    measured = {name: StepMemory.from_plain(tree) for name, tree in found.items()}
    predicted = {
        name: divided_steps.pair(2, **settings).predicted()
        for name, settings in divided_steps.PAIRS.items()
    }
    config = divided_steps.own()
    predicted["own"] = predict_step(
        config, divided_steps.VOCABULARY, config.model, divided_steps.UPDATE, processes=2
    )
    assert measured.keys() == predicted.keys()
    for name, step in measured.items():
        assert predicted[name].peak == pytest.approx(step.peak, rel=0.02), name
        assert predicted[name].start == pytest.approx(step.start, rel=0.02), name
    predicted = {
        "pair": dataclasses.replace(divided_steps.pair(2), sharding="none").predicted(),
        "own": predict_step(
            divided_steps.own("none"),
            divided_steps.VOCABULARY,
            config.model,
            divided_steps.UPDATE,
            processes=2,
        ),
    }
    buckets = json.loads((tmp_path / "buckets.json").read_text())
    assert {name: step.held["gradient buckets"] for name, step in predicted.items()} == buckets


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_held_and_the_head_fall_with_the_processes(tied):
    steps = {n: divided_steps.pair(n, tied=tied).predicted() for n in (1, 8)}
    held = {n: sum(step.held.values()) for n, step in steps.items()}
    assert held[8] < held[1] / 7
    # Beside the buffers of a chunk of logits: both weights and the gradient of one, in parts.
    head = (64 + 96) * 3000 * 4
    losses = {n: step.losses["token losses"].peak for n, step in steps.items()}
    assert losses[8] - losses[1] <= 4 * head / 8
    # And nothing else makes it whole: in the whole step so much of both weights is gone.
    assert steps[8].peak < steps[1].peak - head * 7 / 8


def test_the_allocator_does_not_keep_what_fsdp2_empties():
    above = {}
    for n in (1, 8):
        step = dataclasses.replace(divided_steps.pair(n), backend="torch").predicted("cuda")
        above[n] = step.allocator["peak allocated"] - step.peak
    teacher = sum(p.numel() for p in divided_steps.llama(3, 96, False).parameters()) * 4
    assert above[8] < above[1] + teacher / 2


def test_the_own_trainer_divides_its_teacher_too():
    config = divided_steps.own()
    held = {
        n: predict_step(
            config, divided_steps.VOCABULARY, config.model, divided_steps.UPDATE, processes=n
        ).held["teacher"]
        for n in (1, 8)
    }
    assert held[8] < held[1] / 7


def test_a_pair_is_measured_by_as_many_processes():
    with pytest.raises(InputError, match="expected as many of one process group"):
        divided_steps.pair(2).measured()
