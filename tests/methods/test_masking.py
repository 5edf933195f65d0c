"""Random masks: how many, which, and that they depend on their place alone."""

import numpy as np
import pytest
import torch

from fastkd.methods.masking import Masking, uniform

IDS = torch.arange(1000)
LENGTHS = torch.full((1000,), 8)


def test_uniform_numbers_are_uniform_and_independent():
    x = uniform(1, 2, np.arange(400), 0, 500)
    assert x.min() >= 0 and x.max() < 1
    n = x.size
    # standard errors: mean 1/sqrt(12 n), correlation 1/sqrt(n); five of each
    assert abs(x.mean() - 0.5) < 5 / np.sqrt(12 * n)
    assert abs((x**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / n)
    for other in (
        np.roll(x, 1, 0),
        np.roll(x, 1, 1),
        uniform(2, 2, np.arange(400), 0, 500),
        uniform(1, 3, np.arange(400), 0, 500),
        uniform(1, 2, np.arange(400), 1, 500),
    ):
        assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(n)


def test_uniform_numbers_do_not_depend_on_company():
    alone = uniform(7, 3, np.array([5]), 1, 4)
    assert np.array_equal(uniform(7, 3, np.array([2, 5, 9]), 1, 6)[1, :4], alone[0])
    assert uniform(-1, 3, np.array([5]), 1, 4).shape == (1, 4)


def test_random_counts_are_the_published_ones():
    """floor(L · U + 1): 1 to L, each with probability 1 / L."""
    masking = Masking("random", seed=1)
    counts = masking.counts(IDS.numpy(), LENGTHS.numpy(), update=4)
    share = uniform(1, 4, IDS.numpy(), 0, 1)[:, 0]
    assert counts.tolist() == [int(8 * u + 1) for u in share]
    seen = np.bincount(counts, minlength=9)[1:]
    assert len(seen) == 8 and (abs(seen - 125) < 5 * np.sqrt(125)).all()


@pytest.mark.parametrize("kind", ["random", "full"])
def test_masks_hold_the_counted_pieces(kind):
    masking = Masking(kind, seed=1)
    lengths = torch.arange(1000) % 7
    masked = masking.masked(IDS, lengths, 9, update=2)
    counts = masking.counts(IDS.numpy(), lengths.numpy(), 2)
    assert masked.sum(1).tolist() == counts.tolist()
    assert not masked[torch.arange(9) >= lengths[:, None]].any()
    assert (counts[lengths.numpy() == 0] == 0).all()
    if kind == "full":
        assert counts.tolist() == lengths.tolist()


def test_every_place_is_masked_equally_often():
    masked = Masking("random", seed=3).masked(IDS, LENGTHS, 8, update=1)
    expected = 1000 * 4.5 / 8
    assert ((masked.sum(0) - expected).abs() < 5 * (1000 / 4) ** 0.5).all()


def test_masks_change_with_update_and_seed_and_not_with_company():
    masking = Masking("random", seed=1)
    masked = masking.masked(IDS[:50], LENGTHS[:50], 8, update=1)
    some = torch.tensor([7, 3])
    assert torch.equal(masking.masked(some, LENGTHS[:2], 8, update=1), masked[some])
    assert not torch.equal(masking.masked(IDS[:50], LENGTHS[:50], 8, update=2), masked)
    other = Masking("random", seed=2)
    assert not torch.equal(other.masked(IDS[:50], LENGTHS[:50], 8, update=1), masked)


def test_replaced_pieces_are_some_of_those_left():
    masking = Masking("random", seed=1, replace=0.3)
    masked = masking.masked(IDS, LENGTHS, 8, update=1)
    replaced = masking.replaced(masked, IDS, LENGTHS, update=1)
    assert not (replaced & masked).any()
    left = 8 - masked.sum(1)
    assert replaced.sum(1).tolist() == [int(0.3 * count) for count in left.tolist()]
    counts = masking.replaced_counts(IDS.numpy(), LENGTHS.numpy(), 1)
    assert replaced.sum(1).tolist() == counts.tolist()
