"""What a benchmark will do is told first, with about how long it takes."""

import pytest
import torch

from fastkd.__main__ import main
from fastkd.bench.command import Question, answer
from fastkd.bench.plan import Case, plan, told
from fastkd.bench.run import Effort
from fastkd.bench.tables import TRAINING

CPU = torch.device("cpu")


def question(**changes):
    usual = {"operations": ("linear-ce", "linear-kd"), "shapes": ("smoke",), "effort": Effort(0.0)}
    return Question(**{**usual, "device": CPU, "against": ("torch", "cce"), **changes})


def test_a_case_is_what_is_measured_then():
    asked = question(effort=Effort(0.0, memory=False))
    cases = plan(asked)
    rows = [rows[0] for rows in answer(asked)]
    assert [(c.operation, c.shape) for c in cases] == [(row.operation, row.shape) for row in rows]
    assert {case.providers for case in cases} == {("torch",)}


@pytest.mark.parametrize(
    "more",
    [
        {"effort": Effort(30.0)},
        {"shapes": ("smoke", "smoke")},
        {"against": ("torch", "compile")},
        {"operations": ("linear-ce", "linear-kd", TRAINING)},
    ],
    ids=str,
)
def test_more_takes_longer(more):
    seconds = [
        sum(case.seconds for case in plan(asked)) for asked in (question(), question(**more))
    ]
    assert 0 < seconds[0] < seconds[1]


def test_larger_steps_take_longer():
    small, large = (
        sum(case.seconds for case in plan(question(operations=(TRAINING,), shapes=(shape,))))
        for shape in ("smoke", "cpu")
    )
    assert small < large


def test_it_is_told_first(capsys):
    arguments = "bench --op linear-ce --device cpu --shapes smoke --seconds 0 --no-memory"
    assert main([*arguments.split(), "--against", "torch"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        "linear-ce: N 16 V 64; N 32 V 64; by torch\n2 cases on cpu: a few seconds\n"
    )
    assert told(plan(question(operations=("linear-ce",))), CPU)[0].endswith("by torch")


def test_what_is_over_at_once_has_no_estimate():
    case = Case("linear-ce", "N=4", ("torch",), 0.2)
    assert told([case], CPU)[-1] == "1 case on cpu: a few seconds"
    assert told([case] * 100, CPU)[-1] == "100 cases on cpu: about 20 s"
