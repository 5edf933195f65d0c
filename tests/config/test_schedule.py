"""Values over training, and how they are given and refused."""

import pytest

from fastkd.config.load import dump_config, load_config
from fastkd.config.schedule import RepeatsSchedule, Schedule
from fastkd.errors import InputError

STUDENT = "demo/tie_kd"


def values(schedule, updates, epoch=1):
    return [schedule.at(update, epoch) for update in range(1, updates + 1)]


def test_begins_late_and_ends_early():
    assert values(Schedule(value=2.0, begin=2, end=4), 6) == [0, 0, 2, 2, 0, 0]
    assert values(Schedule(value=2.0, begin=1, end=2, before=5.0, after=1.0), 3) == [5, 2, 1]


def test_rises_from_before_to_its_value():
    ramp = Schedule(value=1.0, begin=2, ramp=4, before=0.2)
    assert values(ramp, 8) == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_decays_from_its_first_full_value():
    assert values(Schedule(value=8.0, decay=0.5), 4) == [8, 4, 2, 1]
    assert values(Schedule(value=8.0, begin=1, ramp=2, decay=0.5), 5) == [0, 4, 8, 4, 2]


def test_by_epoch():
    schedule = Schedule(value=1.0, begin=2, by="epoch")
    assert [schedule.at(999, epoch) for epoch in (1, 2, 3)] == [0, 0, 1]


def test_number_of_passes():
    passes = RepeatsSchedule(value=3, begin=2, end=4)
    assert values(passes, 6) == [1, 1, 3, 3, 1, 1]
    assert passes.highest == 3


def test_in_a_configuration():
    given = [
        "losses.1.rank_weight={value: 1, begin: 500}",
        "losses.1.iterations={value: 3, begin: 5}",
    ]
    loss = load_config(STUDENT, given).losses[1]
    assert loss.rank_weight == Schedule(value=1.0, begin=500)
    assert loss.iterations == RepeatsSchedule(value=3, begin=5)


def test_is_resolved_with_the_run(tmp_path):
    config = load_config(STUDENT, ["losses.1.weight={value: 0.5, ramp: 10}"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("losses.1.weight={value: -1}", "losses.1.weight.value"),
        ("losses.1.weight={valu: 1}", "losses.1.weight.valu: unknown key; did you mean .*value"),
        ("losses.1.weight={value: 1, begin: 5, end: 5}", "an end above begin . ramp = 5"),
        ("losses.1.iterations={value: 0}", "losses.1.iterations.value"),
        ("losses.1.weight=much", "losses.1.weight: expected .* number, not 'much'"),
        (
            "losses.1.weight={value: 1, by: step}",
            "losses.1.weight.by: expected 'update' or 'epoch'",
        ),
    ],
)
def test_refused_in_one_line(override, told):
    with pytest.raises(InputError, match=told) as caught:
        load_config(STUDENT, [override])
    assert "\n" not in str(caught.value)
