"""What holds for every test, and for the processes it starts."""

import os
from collections.abc import Generator

# Workers of pytest share the cores; threads that wait for each other would take most of them.
# Read by PyTorch when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Without a GPU, Triton kernels run under its interpreter. Read when a kernel is defined, so it has
# to be set before the first test module is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Tests of drawn cases end in time on every machine, see `tests.drawn`."""
    drawn = getattr(getattr(item, "obj", None), "hypothesis", None)
    if drawn is None:
        return (yield)
    from tests.drawn import SECONDS, within

    whole = drawn.inner_test
    drawn.inner_test = within(SECONDS, whole)
    try:
        return (yield)
    finally:
        drawn.inner_test = whole
