import pytest
import torch

from fastkd.decode.topk import largest


@pytest.mark.parametrize("size", [1, 7, 16, 100, 319, 320, 321, 335, 1000, 8000])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_equals_topk(size, count, shape):
    generator = torch.Generator().manual_seed(size)
    x = torch.rand(*shape, size, generator=generator)  # no two are equal
    count = min(count, size)
    values, indices = largest(x, count)
    expected = x.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


def test_equal_and_infinite_entries():
    """Which of equal entries are chosen is free; that they are distinct is not."""
    x = torch.randint(0, 4, (50, 500)).float()
    x[:, ::3] = -torch.inf
    x[0] = -torch.inf
    values, indices = largest(x, 6)
    assert torch.equal(values, x.topk(6).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == 6 for row in indices.tolist())
