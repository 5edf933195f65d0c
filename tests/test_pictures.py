"""Colours, ticks, and pictures that tell what they show."""

import itertools

import matplotlib.pyplot as plt
import pytest

from fastkd.palette import METHODS, PRECEDENCE, PROVIDERS, lighter, styles
from fastkd.pictures import digest, log_ticks, shown_by, write_picture


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 1000, [1, 10, 100, 1000]),
        (12, 450, [20, 50, 100, 200]),
        (15, 46, [20, 30, 40]),
        (61, 79, [65, 70, 75]),
        (0.031, 0.052, [0.04, 0.045, 0.05]),
    ],
)
def test_there_are_numbers_within_a_decade_too(low, high, expected):
    ticks = log_ticks(low, high)
    assert len(ticks) >= 3
    assert set(expected) <= {round(tick, 6) for tick in ticks}
    assert all(low <= tick <= high for tick in ticks)


def test_every_kind_has_a_colour_of_its_own():
    for table in (METHODS, PROVIDERS):
        assert len(set(table.values())) == len(table)
    assert set(PRECEDENCE.values()) <= set(METHODS)


def test_methods_of_one_kind_are_told_apart():
    found = styles(["A2D", "word KD", "A2D", "A2D"])
    assert found[0] == (METHODS["A2D"], "-")
    assert found[1] == (METHODS["word KD"], "-")
    assert len(set(found)) == 4
    shades = [lighter(METHODS["A2D"], steps) for steps in range(8)]
    assert all(one <= other for one, other in itertools.pairwise(shades))
    assert shades[-1] != "#ffffff"


def test_a_picture_keeps_what_it_shows(tmp_path):
    file = tmp_path / "new" / "a.png"
    assert shown_by(file) is None
    figure, _ = plt.subplots()
    write_picture(figure, file, digest("data", 3))
    assert shown_by(file) == digest("data", 3) != digest("data", 4)
    assert [path.name for path in file.parent.iterdir()] == ["a.png"]
