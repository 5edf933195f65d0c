"""What `fastkd bench` does, without what it looks like on a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastkd.bench import providers
from fastkd.bench.operation import Operation
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.rates import measured_rates
from fastkd.bench.record import Row, append, this_machine
from fastkd.bench.run import Effort, run_case
from fastkd.bench.tables import TRAINING
from fastkd.errors import InputError

if TYPE_CHECKING:
    from fastkd.bench.training import Scale

NAMES = (*OPERATIONS, TRAINING)
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Question:
    operations: Sequence[str]
    device: torch.device
    shapes: Sequence[str] = ()  # a sweep's name or LETTER=NUMBER,…; none: the device's sweep
    against: Sequence[str] = providers.NAMES
    dtype: str | None = None  # None: bfloat16 on CUDA, float32 on a CPU
    effort: Effort = field(default_factory=Effort)
    out: Path | None = None  # folder that CSV and plots go to


def answer(question: Question) -> Iterator[list[Row]]:
    """The rows of each case as it is measured; they also go to the device's CSV."""
    machine = this_machine(question.device)
    for name in question.operations:
        for rows in _training(question) if name == TRAINING else _cases(name, question):
            if question.out is not None:
                append(results_file(question.out, question.device), machine, rows)
            yield rows


def results_file(out: Path, device: torch.device) -> Path:
    return out / f"{device.type}.csv"


def check(question: Question) -> None:
    """InputError for names and shapes that do not exist, before anything is measured."""
    for name in question.operations:
        if name not in NAMES:
            raise InputError(f"--op: expected one of {', '.join(NAMES)}, not {name!r}")
        if name in OPERATIONS:
            shapes_of(OPERATIONS[name], question)
        else:
            scales_of(question)
    for name in question.against:
        if name not in providers.NAMES:
            known = ", ".join(providers.NAMES)
            raise InputError(f"--against: expected names of {known}, not {name!r}")


def _cases(name: str, question: Question) -> Iterator[list[Row]]:
    operation, device, dtype = OPERATIONS[name], question.device, dtype_of(question)
    rates = measured_rates(device, dtype)
    for shape in shapes_of(operation, question):
        yield run_case(operation, shape, dtype, device, question.against, rates, question.effort)


def dtype_of(question: Question) -> torch.dtype:
    usual = "bfloat16" if question.device.type == "cuda" else "float32"
    dtype: torch.dtype = DTYPES[question.dtype or usual]
    return dtype


def shapes_of(operation: Operation, question: Question, sweep: str = "") -> list[dict[str, int]]:
    shapes = []
    for text in question.shapes or (sweep or question.device.type,):
        named = text in operation.sweeps
        shapes += operation.sweep(text) if named else [operation.shape(text)]
    return shapes


def _training(question: Question) -> Iterator[list[Row]]:
    from fastkd.bench.training import METHODS, backends_of, run_training

    ours, effort = backends_of(question.against, question.device), question.effort
    for scale in scales_of(question):
        yield run_training(
            scale, question.device, ours, tuple(METHODS), effort.least, effort.memory
        )


def scales_of(question: Question) -> "list[Scale]":
    from fastkd.bench.training import SCALES

    names = question.shapes or (question.device.type,)
    for name in names:
        if name not in SCALES:
            known = ", ".join(SCALES)
            raise InputError(f"--shapes: expected one of {known} for training, not {name!r}")
    return [SCALES[name] for name in names]
