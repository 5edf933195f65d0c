"""Regressions on a CPU with pytest-benchmark: `pytest benchmarks/`, `--benchmark-compare`."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastkd.bench.operation import learned
from fastkd.bench.operations import OPERATIONS

CPU = torch.device("cpu")
Measure = Callable[[str, str, str], None]  # of an operation, a shape and a backend


@pytest.fixture
def forward_and_backward(benchmark: BenchmarkFixture) -> Measure:
    """Times an operation's loss and gradients on the CPU by one of our backends."""

    def run(name: str, shape: str, backend: str) -> None:
        operation = OPERATIONS[name]
        loss = operation.loss(backend)
        inputs = operation.inputs(operation.shape(shape), torch.float32, CPU, seed=0)

        def once() -> None:
            for tensor in learned(inputs):
                tensor.grad = None
            loss(inputs).backward()

        benchmark.extra_info |= {"shape": shape, "threads": torch.get_num_threads()}
        benchmark.pedantic(once, rounds=7, warmup_rounds=2)

    return run
