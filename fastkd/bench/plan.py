"""What will be measured, and about how long that takes, before it begins."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastkd.bench.command import Question, dtype_of, scales_of, shapes_of
from fastkd.bench.operation import Operation, describe
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.providers import Absent, build
from fastkd.bench.rates import Rates, measured_rates
from fastkd.bench.tables import TRAINING, short_shape
from fastkd.tables import duration

# What the estimate rests on: eager PyTorch takes some times as long as the least that the
# arithmetic needs, and compiling a case some seconds, here and in the process of its memory.
_TIMES_THE_PACE = 4
_COMPILING = 20.0


@dataclass(frozen=True)
class Case:
    """Of one operation and shape, or of all training steps of a scale."""

    operation: str
    shape: str
    providers: tuple[str, ...]
    seconds: float


def plan(question: Question) -> list[Case]:
    """The cases in the order in which they are measured."""
    device = question.device
    starting = time.process_time()  # what a process of one's own takes to begin, as this one did
    rates = measured_rates(device, dtype_of(question))
    cases: list[Case] = []
    for name in question.operations:
        if name == TRAINING:
            cases += _training(question, rates, starting)
        else:
            operation = OPERATIONS[name]
            present = tuple(_present(operation, question.against, device))
            for shape in shapes_of(operation, question):
                work = operation.work("both", shape, dtype_of(question))
                seconds = _seconds(question, rates.time(work)[0], present, starting)
                cases.append(Case(name, describe(shape), present, seconds))
    return cases


def told(cases: Sequence[Case], device: torch.device) -> list[str]:
    """For people: a line an operation, and how long it takes in all."""
    lines = []
    for name in dict.fromkeys(case.operation for case in cases):
        own = [case for case in cases if case.operation == name]
        shapes = "; ".join(_short(case) for case in own)
        lines.append(f"{name}: {shapes}; by {', '.join(own[0].providers)}")
    seconds = sum(case.seconds for case in cases)
    number = f"{len(cases)} cases" if len(cases) > 1 else "1 case"
    # Of so little most goes into what no rate tells, such as starting threads.
    time = "a few seconds" if seconds < 5 else f"about {duration(seconds)}"
    return [*lines, f"{number} on {device.type}: {time}"]


def _short(case: Case) -> str:
    return case.shape if case.operation == TRAINING else short_shape(case.shape)


def _present(operation: Operation, names: Sequence[str], device: torch.device) -> Iterator[str]:
    """Those who can be built; whether they serve the case is seen when it is measured."""
    for name in names:
        try:
            build(name, operation, device)
        except Absent:
            continue
        except Exception:  # other people's code: what it raises becomes its row
            pass
        yield name


def _seconds(question: Question, pace: float, providers: Sequence[str], starting: float) -> float:
    """One check and a warm-up of each provider, rounds for a while, and a process for memory."""
    effort, number = question.effort, len(providers)
    once = _TIMES_THE_PACE * pace * number
    in_all = 2 * once + max(effort.seconds, effort.least * once)
    compiling = _COMPILING if "compile" in providers else 0.0
    if effort.memory and question.device.type == "cpu":
        return in_all + 2 * compiling + 2 * once + number * starting
    return in_all + compiling


def _training(question: Question, rates: Rates, starting: float) -> Iterator[Case]:
    """Of a step: six operations a weight and token, two more for those of the teacher."""
    from fastkd.bench.training import METHODS, backends_of, weights_of

    backends = backends_of(question.against, question.device)
    for scale in scales_of(question):
        once = 0.0
        for method in METHODS:
            student, teacher = weights_of(scale, method)
            flops = (6 * student + 2 * teacher) * 2 * scale.batch_tokens
            once += _TIMES_THE_PACE * flops / rates.flops * len(backends)
        effort, number = question.effort, len(METHODS) * len(backends)
        memory = 2 * number * starting + 3 * once if effort.memory else 0.0
        seconds = (effort.least + 2) * once + memory
        yield Case(TRAINING, f"{scale.name}, {len(METHODS)} methods", backends, seconds)
