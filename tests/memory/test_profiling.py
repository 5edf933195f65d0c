"""`fastkd.memory.profile` in one's own code."""

import pytest
import torch
from torch import nn

from fastkd import memory
from fastkd.errors import InputError


def test_what_rose_where_and_what_is_held():
    model = nn.Linear(100, 1000, bias=False)
    x = torch.ones(50, 100)
    with memory.profile({"model": model}) as watched:
        kept = model(x)  # 200,000 bytes, held
        model(x)  # as many, freed
    result = watched.result
    assert result.device == "cpu"
    assert result.peak == 400_000
    assert result.held == 200_000
    assert (result.peak_place, result.peak_operation) == ("model", "mm")
    assert [use.place for use in result.uses] == ["model"]
    assert kept.shape == (50, 1000)


def test_decorator_reports_every_call():
    seen = []

    @memory.profile(show=seen.append)
    def work(count):
        return torch.ones(count) * 2

    work(1000)
    work(2000)
    assert [result.peak for result in seen] == [8_000, 16_000]
    assert [result.held for result in seen] == [4_000, 8_000]


def test_backward_is_named(capsys):
    model = nn.Linear(100, 1000)

    @memory.profile({"model": model})
    def step():
        model(torch.ones(50, 100)).square().sum().backward()

    step()
    assert "model, backward" in capsys.readouterr().err


def test_nothing_happened():
    with memory.profile() as watched:
        pass
    assert (watched.result.peak, watched.result.held) == (0, 0)
    assert "0 B" in str(watched.result)


def test_what_is_neither_names_nor_a_pair():
    with pytest.raises(InputError, match=r'modules: .* \{"model": model\}, or a Pair, not Linear$'):
        memory.profile(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"not function; as a decorator, @profile\(\)"):

        @memory.profile
        def step():
            pass


def test_what_would_not_be_heeded_is_refused():
    with pytest.raises(InputError, match="show: expected without a Pair"):
        memory.profile(memory.Pair(None), show=print)
    with pytest.raises(InputError, match="device: expected with a Pair"):
        memory.profile({"model": nn.Linear(2, 2)}, device="cpu")
