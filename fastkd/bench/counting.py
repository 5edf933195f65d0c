"""Launches and host time of a loss, counted on a machine without a GPU.

The kernels are compiled for a GPU that is not there, on the way that a call takes in earnest, and
launched into nothing (`fastkd_kernels.absent`); plain PyTorch computes the same loss on the same
small tensors in turns with it. `python -m fastkd.bench.counting` is the process for it, as nothing
of Triton runs in it any more; it reads what to count from standard input.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from fastkd import watching
from fastkd.bench.operation import Inputs, Loss, Operation, Shape, learned

_REPEATS = 40
_FEW_REPEATS = 3  # of shapes whose launches grow with them
# Operators that are no kernel on a GPU: views, and memory that nobody writes.
_NO_KERNEL = (
    "empty empty_like empty_strided new_empty view _unsafe_view reshape expand as_strided "
    "transpose t permute select slice squeeze unsqueeze detach detach_ alias unflatten flatten "
    "split chunk narrow unbind result_type item _local_scalar_dense is_nonzero resolve_conj "
    "resolve_neg lift_fresh set_ resize_ to _to_copy contiguous"
)


@dataclass(frozen=True)
class Counted:
    """Of one loss and its gradients."""

    launches: int  # Triton's and PyTorch's own
    host: float  # seconds
    plain_host: float


def count(operation: Operation, shape: Shape, capability: int) -> Counted:
    """Once for all shapes that are counted by the same one."""
    small = operation.counted_shape(shape)
    return in_a_process(operation.name, tuple(small.items()), capability)


@functools.cache
def in_a_process(operation: str, small: tuple[tuple[str, int], ...], capability: int) -> Counted:
    """Of one of its own, where nothing else of Triton has run."""
    hidden = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    hidden.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fastkd.bench.counting"],
        input=json.dumps([operation, dict(small), capability]),
        capture_output=True,
        text=True,
        env=hidden,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise RuntimeError(f"counting launches of {operation}: {lines[-1]}")
    return Counted(**json.loads(done.stdout.splitlines()[-1]))


def _in_this_process(operation: Operation, small: Shape, capability: int) -> Counted:
    from fastkd_kernels.absent import install

    launches = install(capability)
    cpu, half = torch.device("cpu"), torch.bfloat16
    ours = _call(operation.loss("triton"), operation.inputs(small, half, cpu, seed=0))
    tiny = operation.inputs(operation.tiny(), half, cpu, seed=0)
    plain = _call(operation.plain(), tiny)
    beside = [ours] if small != operation.tiny() else [ours, plain]
    ours(), plain()
    launches.clear()
    ours()
    found = launches.total() + _kernels_of_pytorch(ours)
    repeats = _REPEATS if len(beside) > 1 else _FEW_REPEATS
    times = _times(beside, repeats)
    plain_host = times[1] if len(beside) > 1 else _times([plain], _REPEATS)[0]
    return Counted(found, times[0], plain_host)


def _call(loss: Loss, inputs: Inputs) -> Callable[[], object]:
    leaves = learned(inputs)

    def call() -> object:
        with watching.pretending(watching.Pretence(fused=True)):
            return torch.autograd.grad(loss(inputs), leaves)

    return call


def _times(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Lower quartiles of processor time, of calls that take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            own.append(time.process_time() - start)
    return [statistics.quantiles(own, n=4, method="inclusive")[0] for own in times]


def _kernels_of_pytorch(call: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    return sum(
        _is_kernel(event.name) and not any(_is_kernel(child.name) for child in event.cpu_children)
        for event in seen.events()
    )


def _is_kernel(name: str) -> bool:
    space, _, operator = name.partition("::")
    return space == "aten" and operator not in _NO_KERNEL.split()


def main() -> None:
    from fastkd.bench.operations import OPERATIONS

    operation, small, capability = json.load(sys.stdin)
    torch.set_num_threads(1)
    print(json.dumps(asdict(_in_this_process(OPERATIONS[operation], small, capability))))


if __name__ == "__main__":
    main()
