"""The kernels as compiled: right, free of races and stray addresses, equal under every schedule."""

import pytest

from tests.compiled.cases.case import Case
from tests.compiled.check import QUICK, SCHEDULES, Verdict, all_cases
from tests.compiled.process import Machine

CASES = list(all_cases())


def params(cases: list[Case]) -> list:
    return [pytest.param(case, id=case.label) for case in cases]


def test_labels_tell_cases_apart():
    labels = [case.label for case in CASES]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("case", params([case for case in CASES if case.quick]))
def test_representative_case(machine: Machine, case: Case) -> None:
    assert_right(machine.check(case.label, QUICK, target=90))


@pytest.mark.slow
@pytest.mark.parametrize("case", params(CASES))
def test_case_under_every_schedule(machine: Machine, case: Case) -> None:
    assert_right(machine.check(case.label, SCHEDULES))


def assert_right(verdict: dict) -> None:
    complaints = Verdict(**verdict).complaints()
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)
