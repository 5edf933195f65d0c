"""The time that work takes at the rates that PyTorch's own operators reach on a machine.

time = max(flops / matrix rate, bytes / copy bandwidth, exponentials / exponential rate)

A GPU has units of their own for matrix products and for exponentials, of which it does 16 a clock
and multiprocessor. On a CPU the same units do both, so their times add up, and both are measured.
It is no bound: a kernel faster at them than PyTorch's own operators beats it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from fastkd.bench.operation import Work
from fastkd.bench.turns import host_clock

_EXPONENTIALS_A_CLOCK = 16
_USUAL_CLOCK = 1_980_000  # kHz, of an H200, where PyTorch does not tell


@dataclass(frozen=True)
class Rates:
    """A second's worth of each."""

    flops: float
    bytes: float
    exponentials: float
    one_unit: bool = False  # for flops and exponentials

    def time(self, work: Work) -> tuple[float, str]:
        """Seconds, and what sets them: "flops", "bytes", "exponentials", or "arithmetic"."""
        flops, exponentials = work.flops / self.flops, work.exponentials / self.exponentials
        times = {"bytes": work.bytes / self.bytes}
        if self.one_unit:
            times["arithmetic"] = flops + exponentials
        else:
            times |= {"flops": flops, "exponentials": exponentials}
        limit = max(times, key=lambda name: times[name])
        return times[limit], limit


@cache
def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Of square matrix products in `dtype`, of copies larger than the caches, of exponentials."""
    cuda = device.type == "cuda"
    size, length = (8192, 1 << 29) if cuda else (1024, 1 << 26)
    square = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(square)
    flops = 2 * size**3 / _best(lambda: torch.mm(square, square, out=product), device)
    source = torch.zeros(length, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    moved = 2 * length / _best(lambda: target.copy_(source), device)
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        clock = 1e3 * getattr(properties, "clock_rate", _USUAL_CLOCK)
        exponentials = _EXPONENTIALS_A_CLOCK * properties.multi_processor_count * clock
    else:
        numbers = torch.randn(1 << 18)  # within the caches
        results = torch.empty_like(numbers)
        exponentials = numbers.numel() / _best(lambda: torch.exp(numbers, out=results), device)
    return Rates(flops, moved, exponentials, one_unit=not cuda)


def _best(function: Callable[[], object], device: torch.device, repeats: int = 25) -> float:
    function()
    now = host_clock(device)
    times: list[float] = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begin = now()
            function()
            times.append(now() - begin)
    return min(times)
