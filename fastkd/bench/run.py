"""Measures providers against each other on one shape."""

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastkd.bench.clock import Clock, Times
from fastkd.bench.operation import Inputs, Loss, Operation, Shape, describe, learned
from fastkd.bench.peak import PeakMemory, peak_in_own_process, peak_on_cuda
from fastkd.bench.providers import Absent, build, version
from fastkd.bench.rates import Rates
from fastkd.bench.record import Row
from fastkd.errors import BackendUnavailable

DIRECTIONS = ("forward", "backward", "both")
# How far a provider may be from the reference in loss and gradient, relative: float32 as the
# package promises it; half precision a few roundings of its operands.
_TOLERANCES = {
    torch.float32: (1e-3, 5e-3),
    torch.float16: (1e-2, 3e-2),
    torch.bfloat16: (2e-2, 1e-1),
}


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least and at most so many rounds, within seconds if possible."""

    seconds: float = 3.0
    least: int = 5
    most: int = 50
    memory: bool = True
    any_plain: bool = False  # plain PyTorch is measured whatever its digits are


@dataclass(frozen=True)
class _Difference:
    loss: float
    gradient: float

    def complaint(self, dtype: torch.dtype) -> str | None:
        loss, gradient = _TOLERANCES.get(dtype, _TOLERANCES[torch.float32])
        if self.loss <= loss and self.gradient <= gradient:
            return None
        return f"computes another loss (off by {self.loss:.1e}, gradient {self.gradient:.1e})"


def run_case(
    operation: Operation,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    providers: Sequence[str],
    rates: Rates,
    effort: Effort,
) -> list[Row]:
    """Rows of every provider, by direction; a provider that cannot serve has one row saying so.

    Each first shows that it computes the reference's loss and gradients. Then they take turns,
    round by round on fresh inputs, each beginning a round in turn. Their times are relative to the
    reference's, or to those of the first where it does not take part.
    """
    losses: dict[str, Loss] = {}
    statuses: dict[str, str] = {}
    differences: dict[str, _Difference] = {}
    inputs = operation.inputs(shape, dtype, device, seed=0)
    truth = _truth(operation, inputs)
    for name in providers:
        try:
            loss = build(name, operation, device)
            differences[name] = _difference(_outcome(loss, inputs), truth)
            complaint = differences[name].complaint(dtype)
            if name == "plain" and effort.any_plain:
                complaint = None
        except (Absent, BackendUnavailable) as reason:
            complaint = f"absent: {reason}"
        except (torch.OutOfMemoryError, MemoryError):
            complaint = "out of memory"
        except Exception as error:  # other people's code: whatever it raises is its result
            first_line = next(iter(str(error).strip().splitlines()), "")
            complaint = f"failed: {type(error).__name__}: {first_line}"
        if complaint is None:
            losses[name] = loss
        else:
            statuses[name] = complaint
    del truth, inputs
    clock = Clock(device)
    times = _rounds(operation, shape, dtype, clock, losses, effort)
    base_name = "reference" if "reference" in times else next(iter(times), "")
    rows = []
    for name in providers:
        common: dict[str, Any] = {
            "operation": operation.name,
            "shape": describe(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "provider": name,
            "version": version(name),
        }
        if name in statuses:
            rows.append(Row(**common, direction="both", status=statuses[name]))
            continue
        peak = None
        if effort.memory:
            peak = _peak(operation, shape, dtype, device, name, losses[name])
        common |= {
            "loss_difference": differences[name].loss,
            "gradient_difference": differences[name].gradient,
            "clock": clock.name,
            "peak_bytes": peak.peak if peak else None,
            "allocated_bytes": peak.allocated if peak else None,
        }
        for direction in DIRECTIONS:
            own, base = (
                [getattr(measured, direction) for measured in times.get(who, ())]
                for who in (name, base_name)
            )
            seconds, limit = rates.time(operation.work(direction, shape, dtype))
            rows.append(
                Row(
                    **common,
                    **figures(own, base),
                    direction=direction,
                    status="ok",
                    bound_ms=1e3 * seconds,
                    bound_by=limit,
                )
            )
    return rows


def figures(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """A row's figures of times, one a round, beside those of the base in the same rounds."""
    lower, median, upper = (
        1e3 * quartile for quartile in statistics.quantiles(seconds, n=4, method="inclusive")
    )
    relative = None
    if base:
        relative = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
    return {
        "repeats": len(seconds),
        "median_ms": median,
        "lower_ms": lower,
        "upper_ms": upper,
        "relative": relative,
    }


def _peak(
    operation: Operation,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    provider: str,
    loss: Loss,
) -> PeakMemory:
    if device.type == "cuda":
        return peak_on_cuda(loss, operation.inputs(shape, dtype, device, seed=0), device)
    return peak_in_own_process(operation.name, shape, dtype, provider)


def _truth(operation: Operation, inputs: Inputs) -> tuple[float, list[Tensor]]:
    """The reference's outcome; where its memory does not suffice, that of the torch backend."""
    try:
        return _outcome(operation.loss("reference"), inputs)
    except (torch.OutOfMemoryError, MemoryError):
        gc.collect()
    return _outcome(operation.loss("torch"), inputs)


def _rounds(
    operation: Operation,
    shape: Shape,
    dtype: torch.dtype,
    clock: Clock,
    losses: dict[str, Loss],
    effort: Effort,
) -> dict[str, list[Times]]:
    times: dict[str, list[Times]] = {name: [] for name in losses}
    order = list(losses)
    end = time.perf_counter() + effort.seconds
    for turn in range(effort.most + 1):
        inputs = operation.inputs(shape, dtype, clock.device, seed=turn + 1)
        for name in order:
            measured = clock.once(losses[name], inputs)
            if turn:  # the first round warms up
                times[name].append(measured)
        order = order[1:] + order[:1]
        if turn >= effort.least and time.perf_counter() > end:
            break
    return times


def _outcome(loss: Loss, inputs: Inputs) -> tuple[float, list[Tensor]]:
    for tensor in learned(inputs):
        tensor.grad = None
    value = loss(inputs)
    value.backward()
    gradients = [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for tensor in learned(inputs)
    ]
    for tensor in learned(inputs):
        tensor.grad = None
    gc.collect()
    return value.item(), gradients


def _difference(
    found: tuple[float, list[Tensor]], truth: tuple[float, list[Tensor]]
) -> _Difference:
    gradient = max(
        float((mine.float() - his.float()).norm() / his.float().norm().clamp(min=1e-30))
        for mine, his in zip(found[1], truth[1], strict=True)
    )
    return _Difference(abs(found[0] - truth[0]) / max(abs(truth[0]), 1e-30), gradient)
