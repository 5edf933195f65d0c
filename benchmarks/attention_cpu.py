"""Attention alignment on a CPU: the torch backend beside its definition.

    python -m benchmarks.attention_cpu [--rounds N] [--threads N] [--case NAME …] [--out FILE]

One forward and backward pass in float32 of 12 student and 24 teacher maps with heads of 64.
Candidates take turns, so that whatever else the machine does falls on all of them; `slower` is
the median over the rounds of a candidate's time over that of the torch backend. With one thread it
is processor time, which other work hardly touches. `peak` is how far
resident memory rises above the inputs in a process of its own that has done the same before,
gradients included. `floor` is the share that matrix products and exponentials alone would need, one
after the other at the rates of PyTorch's own, of a candidate's lower quartile.

- torch: with its compiled walk
- torch without a compiler: as it runs where none is found
- reference: the definition, in eager PyTorch
- compile: `torch.compile` of the definition, for these very shapes
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

from fastkd.bench.alignment import Alignment
from fastkd.bench.operation import Inputs, Loss, Work
from fastkd.bench.record import Row, append, this_machine
from fastkd.bench.roofline import Rates, measured_rates
from fastkd.bench.tables import text_table
from fastkd.memory.resident import child_environment, resident, restart_peak

SHAPES = ("B=2,T=1024", "B=16,T=128", "B=64,T=32")
CASES = {f"{kind},{shape}": (kind, shape) for shape in SHAPES for kind in ("row", "map")}
CANDIDATES = ("torch", "torch without a compiler", "reference", "compile")
FILE = Path(__file__).parent / "results" / "attention" / "cpu.csv"
CPU = torch.device("cpu")
RATES = tuple(field.name for field in fields(Rates))


@contextmanager
def chosen(candidate: str) -> Iterator[None]:
    before = os.environ.get("FASTKD_NATIVE")
    os.environ["FASTKD_NATIVE"] = "never" if candidate == "torch without a compiler" else "always"
    try:
        yield
    finally:
        del os.environ["FASTKD_NATIVE"]
        if before is not None:
            os.environ["FASTKD_NATIVE"] = before


def loss_of(operation: Alignment, candidate: str) -> Loss:
    if candidate == "compile":
        return torch.compile(operation.plain(), dynamic=False, fullgraph=True)
    return operation.loss(candidate.split()[0])


def step(candidate: str, loss: Loss, inputs: Inputs) -> float:
    """Seconds of a forward and backward pass."""
    for tensor in inputs.values():
        tensor.grad = None
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with chosen(candidate):
        begin = clock()
        loss(inputs).backward()
        return clock() - begin


def prepared(name: str) -> tuple[Alignment, Callable[[], Inputs]]:
    kind, shape = CASES[name]
    operation = Alignment(kind)
    return operation, lambda: operation.inputs(operation.shape(shape), torch.float32, CPU, 0)


def times(name: str, rounds: int) -> dict[str, list[float]]:
    operation, new_inputs = prepared(name)
    inputs = new_inputs()
    losses = {candidate: loss_of(operation, candidate) for candidate in CANDIDATES}
    measured: dict[str, list[float]] = {candidate: [] for candidate in CANDIDATES}
    for _ in range(rounds + 2):
        for candidate, loss in losses.items():
            measured[candidate].append(step(candidate, loss, inputs))
    return {candidate: seconds[2:] for candidate, seconds in measured.items()}


def peak_here(name: str, candidate: str) -> int:
    operation, new_inputs = prepared(name)
    loss = loss_of(operation, candidate)
    inputs = new_inputs()
    step(candidate, loss, inputs)
    for tensor in inputs.values():
        tensor.grad = None
    restart_peak()
    before = resident()[0]
    step(candidate, loss, inputs)
    return resident()[1] - before


def peak(name: str, candidate: str, threads: int) -> int:
    """Bytes, measured in a process of its own."""
    code = (
        "from benchmarks.attention_cpu import peak_here; import torch; "
        f"torch.set_num_threads({threads}); print(peak_here({name!r}, {candidate!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=child_environment(threads),
    )
    return int(done.stdout)


def best_rates() -> Rates:
    """Beside other work a single try may be cut short."""
    tries = [measured_rates.__wrapped__(CPU, torch.float32) for _ in range(8)]
    return Rates(*(max(getattr(each, name) for each in tries) for name in RATES))


def floor(work: Work, rates: Rates) -> float:
    return work.flops / rates.flops + work.exponentials / rates.exponentials


def rows(name: str, rounds: int, rates: Rates) -> Iterator[tuple[Row, float]]:
    """Each candidate's, and how many times slower than the torch backend it is."""
    operation, _ = prepared(name)
    shape = CASES[name][1]
    bound = floor(operation.work("both", operation.shape(shape), torch.float32), rates)
    measured = times(name, rounds)
    for candidate, seconds in measured.items():
        ratios = [a / b for a, b in zip(seconds, measured["torch"], strict=True)]
        lower, median, upper = statistics.quantiles(seconds, n=4)
        yield (
            Row(
                operation.name, shape, "float32", candidate, "", "both", "ok", "perf_counter",
                len(seconds), 1e3 * median, 1e3 * lower, 1e3 * upper, 1e3 * bound,
                "flops and exponentials", peak(name, candidate, torch.get_num_threads()),
            ),
            statistics.median(ratios),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rates = best_rates()
    lines = []
    for name in arguments.case:
        found = list(rows(name, arguments.rounds, rates))
        append(arguments.out, this_machine(CPU), [row for row, _ in found])
        least = found[0][0].peak_bytes or 1
        for row, slower in found:
            assert row.lower_ms and row.median_ms and row.bound_ms and row.peak_bytes is not None
            share = f"{row.bound_ms / row.lower_ms:.0%}"
            memory = f"{row.peak_bytes / 2**20:.1f}", f"{row.peak_bytes / least:.1f}"
            line = f"{name}, {row.provider}", f"{row.median_ms:.1f}", f"{slower:.2f}", share
            lines.append((*line, *memory))
            print(*lines[-1], sep="\t", flush=True)
    print(text_table(("case", "ms", "slower", "floor", "peak, MiB", "times ours"), lines))


if __name__ == "__main__":
    main()
