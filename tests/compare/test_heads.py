"""The mix of heads over training as a table and as a picture."""

import pytest
import torch

from fastkd.compare.heads import by_layers, table_of
from fastkd.plots import mixes_over_training

MIX = torch.tensor([[4.0, 0, 0, 0], [0, 0, 2, 2], [1, 1, 1, 1], [0, 3, 0, 0]])


def test_shares_of_layers():
    """2 teacher layers of 2 heads, 2 student layers of 2 heads; a row counts for one, whatever its
    size."""
    expected = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(by_layers(MIX, 2, 2), expected)


def test_a_line_a_layer_and_a_column_an_update():
    shown = table_of({20: {"cross": MIX}, 10: {"cross": torch.ones(4, 4)}}, 2, 2)
    assert shown.header == ["teacher's layer", "10", "20"]
    assert shown.lines == [["cross 1", "50 50", "50 50"], ["cross 2", "50 50", "75 25"]]


def test_the_table_of_many_validations_has_the_moments_of_the_picture():
    mixes = {10 * n: {"cross": MIX * n} for n in range(1, 101)}
    header = table_of(mixes, 2, 2).header
    titles = [axis.get_title() for axis in mixes_over_training(mixes, 2, 2).axes]
    assert header[1:] == [title.partition("update ")[2] for title in titles if title]
    assert header[1:] == ["10", "260", "510", "750", "1,000"]


@pytest.mark.parametrize("updates", [1, 3, 40])
def test_the_picture_has_the_first_moment_and_the_last(updates):
    mixes = {100 * n: {"encoder": MIX * n, "cross": MIX * n} for n in range(1, updates + 1)}
    figure = mixes_over_training(mixes, 2, 2)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    shown = min(updates, 5)
    assert len(titles) == 2 * shown
    assert titles[0] == "encoder, update 100"
    assert titles[-1] == f"cross, update {100 * updates:,}"
    images = [axis.images[0] for axis in figure.axes if axis.get_title()]
    last = images[-1]
    assert last.get_array().tolist() == (MIX * updates).tolist()
    assert {image.get_clim() for image in images} == {(0.0, 4.0 * updates)}
