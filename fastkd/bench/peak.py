"""Peak memory of one forward and backward pass above its inputs, gradients included.

On CUDA the rise of the allocator's peak. On a CPU a process of its own: how far its resident
memory rises, and how far the sum of what PyTorch's allocator gave out rises, as a check.

`python -m fastkd.bench.peak` is that process; it reads what to run from standard input.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

import torch

from fastkd.bench.operation import Inputs, Loss, Shape, learned
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.providers import build
from fastkd.memory.resident import child_environment, resident, restart_peak


@dataclass(frozen=True)
class PeakMemory:
    """Bytes; `allocated` is the allocator's own count where `peak` is the system's."""

    peak: int
    allocated: int


def peak_in_own_process(
    operation: str, shape: Shape, dtype: torch.dtype, provider: str
) -> PeakMemory:
    """On the CPU."""
    request = [operation, dict(shape), str(dtype).removeprefix("torch."), provider]
    done = subprocess.run(
        [sys.executable, "-m", "fastkd.bench.peak"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=child_environment(torch.get_num_threads()),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise RuntimeError(f"measuring memory of {operation} by {provider}: {lines[-1]}")
    return PeakMemory(*json.loads(done.stdout.splitlines()[-1]))


def _run(loss: Loss, inputs: Inputs) -> None:
    for tensor in learned(inputs):
        tensor.grad = None
    loss(inputs).backward()


def peak_on_cuda(loss: Loss, inputs: Inputs, device: torch.device) -> PeakMemory:
    _run(loss, inputs)
    for tensor in learned(inputs):
        tensor.grad = None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _run(loss, inputs)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return PeakMemory(peak, peak)


def _on_cpu(operation: str, shape: Shape, dtype: torch.dtype, provider: str) -> PeakMemory:
    device = torch.device("cpu")
    loss = build(provider, OPERATIONS[operation], device)
    inputs = OPERATIONS[operation].inputs(shape, dtype, device, seed=0)
    _run(loss, inputs)  # libraries are loaded, threads started, code compiled
    for tensor in learned(inputs):
        tensor.grad = None
    restart_peak()
    before = resident()[0]
    _run(loss, inputs)
    peak = resident()[1] - before
    for tensor in learned(inputs):
        tensor.grad = None
    return PeakMemory(peak, _allocated_rise(loss, inputs))


def _allocated_rise(loss: Loss, inputs: Inputs) -> int:
    """From the allocator's own record of what it gives and takes back."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        _run(loss, inputs)
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def main() -> None:
    operation, shape, dtype, provider = json.load(sys.stdin)
    found = _on_cpu(operation, shape, getattr(torch, dtype), provider)
    print(json.dumps([found.peak, found.allocated]))


if __name__ == "__main__":
    main()
