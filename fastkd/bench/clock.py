"""Times of one forward and one backward pass, on a CPU and on a GPU."""

from dataclasses import dataclass

import torch

from fastkd.bench.operation import Inputs, Loss, learned
from fastkd.bench.turns import host_clock

_FLUSH_BYTES = 256 << 20  # more than any last-level cache
_QUEUE_CYCLES = 2_000_000  # about a millisecond: time for the host to queue what follows


@dataclass(frozen=True)
class Times:
    """Seconds."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


class Clock:
    """once(loss, inputs) runs a loss forward and backward and says how long each took.

    On CUDA the times are between events, after the last cache was overwritten, and with a queue
    that the host has had time to fill, so they are the device's own; synchronising code waits
    inside them. On a CPU with one thread they are processor time, which other work hardly touches.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._now = host_clock(device)
        self.name = "cuda events" if device.type == "cuda" else self._now.__name__
        self._flush = None
        if device.type == "cuda":
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def once(self, loss: Loss, inputs: Inputs) -> Times:
        for tensor in learned(inputs):
            tensor.grad = None
        return (
            self._on_cuda(loss, inputs) if self._flush is not None else self._on_cpu(loss, inputs)
        )

    def _on_cuda(self, loss: Loss, inputs: Inputs) -> Times:
        assert self._flush is not None
        start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        torch.cuda.synchronize(self.device)
        self._flush.zero_()
        torch.cuda._sleep(_QUEUE_CYCLES)
        start.record()
        value = loss(inputs)
        middle.record()
        value.backward()
        end.record()
        torch.cuda.synchronize(self.device)
        return Times(start.elapsed_time(middle) / 1e3, middle.elapsed_time(end) / 1e3)

    def _on_cpu(self, loss: Loss, inputs: Inputs) -> Times:
        start = self._now()
        value = loss(inputs)
        middle = self._now()
        value.backward()
        return Times(middle - start, self._now() - middle)
