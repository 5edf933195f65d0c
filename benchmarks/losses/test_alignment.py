"""Attention alignment on a CPU."""

import pytest

SHAPES = ("B=64,T=32", "B=8,T=256")


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalization", ["map", "row", "mixture", "plain"])
def test_alignment(forward_and_backward, normalization, shape, backend):
    forward_and_backward(f"alignment-{normalization}", shape, backend)
