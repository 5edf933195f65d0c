"""The losses on the vocabulary on a CPU, from logits and from hidden states."""

import pytest

from benchmarks.losses.conftest import Measure


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("loss", ["kd", "tie"])
def test_logits(forward_and_backward: Measure, loss: str, backend: str) -> None:
    forward_and_backward(f"logits-{loss}", "N=512,V=8000", backend)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("loss", ["ce", "kd", "tie"])
def test_linear(forward_and_backward: Measure, loss: str, backend: str) -> None:
    forward_and_backward(f"linear-{loss}", "N=512,V=8000,Ds=256,Dt=512", backend)
