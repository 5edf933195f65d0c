"""Attention alignment on a CPU."""

import pytest

from benchmarks.losses.conftest import Measure

SHAPES = ("B=64,T=32", "B=8,T=256")


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalization", ["map", "row", "mixture", "plain"])
def test_alignment(
    forward_and_backward: Measure, normalization: str, shape: str, backend: str
) -> None:
    forward_and_backward(f"alignment-{normalization}", shape, backend)
