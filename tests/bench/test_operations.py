"""Operations: shapes, inputs, and the work that their pace counts."""

import pytest
import torch

from fastkd.bench.operation import Work, learned
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.rates import Rates
from fastkd.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_definition_is_the_public_loss(name):
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.sweep("smoke")[0], torch.float64, CPU, seed=1)
    values = [operation.definition()(inputs), operation.loss("reference")(inputs)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, learned(inputs)) for value in values]
    torch.testing.assert_close(*gradients)


def test_the_work_of_documents_is_that_of_the_table():
    """B 8, T 2048, Ns 12, Nt 24, D 64 in bfloat16: 316 Gflop, 201 MB."""
    operation = OPERATIONS["alignment-row"]
    shape = operation.shape("B=8,Ns=12,Nt=24,T=2048,D=64")
    work = operation.work("both", shape, torch.bfloat16)
    assert work.flops == pytest.approx(316e9, rel=0.01)
    assert work.bytes == pytest.approx(201e6, rel=0.2)
    forward = operation.work("forward", shape, torch.bfloat16)
    backward = operation.work("backward", shape, torch.bfloat16)
    assert forward + backward == work


def test_the_time_is_set_by_the_slowest():
    rates = Rates(flops=100.0, bytes=10.0, exponentials=1.0)
    assert rates.time(Work(flops=1000.0, bytes=10.0, exponentials=1.0)) == (10.0, "flops")
    assert rates.time(Work(flops=100.0, bytes=30.0, exponentials=1.0)) == (3.0, "bytes")
    assert rates.time(Work(flops=100.0, bytes=10.0, exponentials=2.0)) == (2.0, "exponentials")


def test_a_cpu_does_products_and_exponentials_one_after_the_other():
    rates = Rates(flops=100.0, bytes=10.0, exponentials=1.0, one_unit=True)
    assert rates.time(Work(flops=100.0, bytes=10.0, exponentials=2.0)) == (3.0, "arithmetic")
    assert rates.time(Work(flops=100.0, bytes=40.0, exponentials=2.0)) == (4.0, "bytes")


def test_shapes_are_read_with_what_is_not_given():
    operation = OPERATIONS["alignment-row"]
    assert operation.shape("T=7, B=3") == {"B": 3, "Ns": 12, "Nt": 24, "T": 7, "D": 64}


@pytest.mark.parametrize("text", ["", "T", "T=", "T=0", "T=-1", "X=3", "T=1.5"])
def test_wrong_shapes_are_refused(text):
    with pytest.raises(InputError, match="--shapes"):
        OPERATIONS["alignment-row"].shape(text)
