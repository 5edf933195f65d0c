"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example):
    scope: dict = {}
    exec(example, scope)
    learned = [value for value in scope.values() if getattr(value, "requires_grad", False)]
    assert learned and all(tensor.grad.isfinite().all() for tensor in learned)


def test_there_are_examples():
    assert len(EXAMPLES) == 3


def test_its_losses_are_of_one_size():
    """So that weights near 1 let neither swamp the other."""
    tokens, attention = ({}, {})
    exec(EXAMPLES[0], tokens)
    exec(EXAMPLES[1], attention)
    lengths = attention["lengths"]
    sides = (attention[name] for name in ("q", "k", "tq", "tk"))
    aligned = float(attention["align"](*sides, query_lengths=lengths, key_lengths=lengths))
    assert 0.05 < aligned < float(tokens["losses"].ce)
