"""What `fastkd bench` does, without what it looks like on a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastkd.bench import providers
from fastkd.bench.operation import Operation
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.record import Row, append, this_machine
from fastkd.bench.roofline import measured_rates
from fastkd.bench.run import Effort, run_case
from fastkd.bench.tables import TRAINING
from fastkd.errors import InputError
from fastkd.functional.dispatch import BACKENDS

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
            _shapes(OPERATIONS[name], question)
        else:
            _scales(question)
    for name in question.against:
        if name not in providers.NAMES:
            known = ", ".join(providers.NAMES)
            raise InputError(f"--against: expected names of {known}, not {name!r}")


def _cases(name: str, question: Question) -> Iterator[list[Row]]:
    operation, device = OPERATIONS[name], question.device
    dtype = DTYPES[question.dtype or _usual_dtype(device)]
    rates = measured_rates(device, dtype)
    for shape in _shapes(operation, question):
        yield run_case(operation, shape, dtype, device, question.against, rates, question.effort)


def _usual_dtype(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" else "float32"


def _shapes(operation: Operation, question: Question) -> list[dict[str, int]]:
    shapes = []
    for text in question.shapes or (question.device.type,):
        named = text in operation.sweeps
        shapes += operation.sweep(text) if named else [operation.shape(text)]
    return shapes


def _training(question: Question) -> Iterator[list[Row]]:
    from fastkd.bench.training import METHODS, run_training

    ours = [name for name in question.against if name in BACKENDS]
    if question.device.type == "cpu":
        ours = [name for name in ours if name != "triton"]
    effort = question.effort
    for scale in _scales(question):
        yield run_training(
            scale, question.device, ours, tuple(METHODS), effort.least, effort.memory
        )


def _scales(question: Question) -> "list[Scale]":
    from fastkd.bench.training import SCALES

    names = question.shapes or (question.device.type,)
    for name in names:
        if name not in SCALES:
            known = ", ".join(SCALES)
            raise InputError(f"--shapes: expected one of {known} for training, not {name!r}")
    return [SCALES[name] for name in names]
