"""Drawn cases have a time, which hides no failure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import within


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr("tests.drawn.time.monotonic", lambda: now[0])
    return now


def test_no_more_cases_once_the_time_is_over(clock):
    seen = []

    def case(number):
        seen.append(number)
        clock[0] += 1.0

    limited = within(3.0, case)
    for number in range(10):
        limited(number)
    assert seen == [0, 1, 2, 3]


def test_a_late_failure_is_found_again_and_made_smaller(clock):
    @settings(database=None, deadline=None)
    @given(st.integers(0, 1000))
    def case(number):
        clock[0] += 100.0 * (number >= 10)
        assert number < 10

    case.hypothesis.inner_test = within(50.0, case.hypothesis.inner_test)
    with pytest.raises(AssertionError, match="assert 10 < 10"):
        case()


@given(st.integers())
def test_every_test_of_drawn_cases_is_limited(number):
    assert test_every_test_of_drawn_cases_is_limited.hypothesis.inner_test.__wrapped__
