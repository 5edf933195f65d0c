"""Predicts the time of a loss on a chip that is not there, in bfloat16, beside plain PyTorch's.

Launches and host time are counted by `counting`, instructions of the kernels come from
`kernel_costs.csv`, which `python -m tests.compiled.costs --write` counts by executing them, and
what plain PyTorch moves from `traffic`. Of either each kernel reads and writes what it is given
once.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkd.bench.chips import Calculated, Chip
from fastkd.bench.command import Question, shapes_of
from fastkd.bench.counting import count
from fastkd.bench.operation import Operation, Shape, describe
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.tables import milliseconds
from fastkd.bench.traffic import traffic
from fastkd.tables import Line, Table, size

_COSTS = Path(__file__).with_name("kernel_costs.csv")
_HEADER = ("provider", "launches", "host, µs", "traffic", "instructions", "ms", "pace", "speed")


@cache
def instructions() -> dict[str, float]:
    """Of all kernels of a call, for a unit of its work, by call."""
    found: dict[str, float] = {}
    with open(_COSTS, newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            own = float(line["instructions"])
            found[line["call"]] = found.get(line["call"], 0.0) + own
    return found


@dataclass(frozen=True)
class Prediction:
    provider: str
    cost: Calculated
    seconds: float


def of_plain(operation: Operation, shape: Shape) -> Calculated:
    """But for the host's time."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = operation.inputs(shape, torch.bfloat16, torch.device("cpu"), seed=0)
    return traffic(operation.plain(), inputs)


def predict(operation: Operation, shape: Shape, chip: Chip) -> list[Prediction]:
    """Of plain PyTorch and of the Triton kernels."""
    counted = count(operation, shape, chip.capability)
    plain = replace(of_plain(operation, shape), host=counted.plain_host)
    units = operation.units(shape)
    work = operation.work("both", shape, torch.bfloat16)
    further = operation.further_launches(shape)
    ours = Calculated(
        counted.launches + further,
        counted.host * (1 + further / counted.launches),
        operation.moved(shape, torch.bfloat16.itemsize),
        sum(instructions()[call] * amount for call, amount in units.items()),
        work.flops,
        work.exponentials,
    )
    costs = {"plain": plain, "triton": ours}
    return [Prediction(name, cost, chip.seconds(cost)) for name, cost in costs.items()]


def table(operation: Operation, shape: Shape, chip: Chip) -> Table:
    """pace: the share of the rates that is reached; speed: times plain PyTorch's."""
    found = predict(operation, shape, chip)
    least = chip.least(operation.work("both", shape, torch.bfloat16))
    lines: list[Line] = [
        (
            each.provider,
            str(each.cost.launches),
            f"{1e6 * each.cost.host:.0f}",
            size(int(each.cost.bytes)),
            f"{each.cost.instructions:.2g}" if each.cost.instructions else "",
            milliseconds(1e3 * each.seconds),
            f"{least / each.seconds:.1%}",
            f"{found[0].seconds / each.seconds:.2f}",
        )
        for each in found
    ]
    title = f"{operation.name} {describe(shape)} bfloat16, predicted for {chip.name}"
    return Table(title, _HEADER, lines)


def predictions(question: Question, chip: Chip) -> Iterator[Table]:
    """A table for each loss and shape, of the GPU's sweep where none is named."""
    for name in question.operations:
        if name in OPERATIONS:
            operation = OPERATIONS[name]
            for shape in shapes_of(operation, question, "cuda"):
                yield table(operation, shape, chip)
