"""What plain PyTorch moves, what the kernels were counted to cost, and the time that follows."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkd.bench import counting, predict
from fastkd.bench.chips import CHIPS, Calculated
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.traffic import traffic

H200 = CHIPS["h200"]


def test_traffic_of_a_product_and_a_sum_by_hand():
    with FakeTensorMode():
        left = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
        right = torch.randn(8, 16, dtype=torch.bfloat16)
    found = traffic(
        lambda inputs: (inputs["left"] @ inputs["right"]).sum(), {"left": left, "right": right}
    )
    # mm, sum, the one that gradients start from, and mm with it expanded; transposes cost nothing
    assert found.launches == 4
    product = 2 * (4 * 8 + 8 * 16 + 4 * 16)
    assert found.bytes == product + 2 * (4 * 16 + 1) + 2 * (1 + 1) + 2 * (1 + 8 * 16 + 4 * 8)
    assert found.flops == 2 * 2 * 4 * 8 * 16
    assert found.exponentials == 0


def test_time_is_the_host_or_launches_and_the_slowest_rate():
    busy = Calculated(
        launches=5, host=0.0, bytes=4.3e9, instructions=6e10, flops=0.0, exponentials=0.0
    )
    assert H200.seconds(busy) == pytest.approx(5 * 4e-6 + 2e-3)
    waiting = Calculated(5, 3e-3, 4.3e9, 6e10, 0.0, 0.0)
    assert H200.seconds(waiting) == 3e-3


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call_of_a_prediction_was_counted(name):
    operation = OPERATIONS[name]
    for shape in operation.sweep("cuda"):
        for call, units in operation.units(shape).items():
            assert predict.instructions()[call] > 10
            assert units == int(units)


@pytest.mark.parametrize("name", OPERATIONS)
def test_plain_pytorch_moves_at_least_what_the_loss_must(name):
    operation = OPERATIONS[name]
    for shape in operation.sweep("smoke"):
        found, least = (
            predict.of_plain(operation, shape),
            operation.work("both", shape, torch.bfloat16),
        )
        assert found.bytes > least.bytes
        assert found.flops >= 0.5 * least.flops
        assert 10 < found.launches < 100


def test_units_of_documents_add_up_to_cells_and_student_maps():
    operation = OPERATIONS["alignment-row"]
    shape = operation.shape("B=8,T=2048,Ns=12,Nt=24")
    assert sum(operation.units(shape).values()) == 8 * 2048**2 * 12
    assert operation.counted_shape(shape) == shape  # three times what the scratch holds
    small = operation.shape("B=128,T=32,Ns=12,Nt=24")
    assert operation.counted_shape(small) == operation.tiny()


def test_shapes_that_are_counted_alike_are_counted_once(monkeypatch):
    asked = []

    def run(*_, input, **__):
        asked.append(input)
        told = json.dumps({"launches": 5, "host": 1e-4, "plain_host": 2e-4})
        return subprocess.CompletedProcess([], 0, told, "")

    monkeypatch.setattr(counting.subprocess, "run", run)
    operation = OPERATIONS["alignment-row"]
    counting.in_a_process.cache_clear()
    for sizes in ("B=128,T=32", "B=64,T=64", "B=8,T=2048"):
        assert counting.count(operation, operation.shape(sizes), 90).launches == 5
    counting.in_a_process.cache_clear()
    assert len(asked) == 2  # the documents' launches grow with their shape


def test_what_the_kernels_move_by_hand():
    shape = {"B": 8, "Ns": 12, "Nt": 24, "T": 2048, "D": 64}
    queries = 2 * 8 * 2048 * 64 * 2  # bytes of queries and keys of one head
    maps = 8 * 2048**2 * 2
    found = OPERATIONS["alignment-row"].moved(shape, 2)
    assert found == queries * (36 + 24) + maps * (36 + 36 + 12 + 24)
    assert OPERATIONS["alignment-map"].moved(shape, 2) == found + maps * 36
    assert OPERATIONS["logits-kd"].moved({"N": 4, "V": 10}, 2) == 3 * 4 * 10 * 2


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_prediction_without_a_gpu():
    command = ["bench", "--predict", "h200", "--op", "alignment-row", "--shapes", "B=128,T=32"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "fastkd", *command], capture_output=True, text=True, env=environment
    )
    assert not done.returncode, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert int(lines["triton"][1]) <= 5
    assert int(lines["plain"][1]) > 20
    assert float(re.findall(r"[\d.]+$", done.stdout.strip())[-1]) > 1  # times plain PyTorch's speed
