"""What a chip does in a second, and the time that a call takes on it by that.

    time = max(host, launches · 4 µs + max(bytes, instructions, flops, exponentials at their rates))

Each rate is what good kernels reach, not what a data sheet promises.
"""

from dataclasses import dataclass

from fastkd.bench.operation import Work
from fastkd.bench.rates import Rates

LAUNCH_SECONDS = 4e-6  # between two kernels that wait for one another


@dataclass(frozen=True)
class Calculated:
    """What a call costs, forward and backward together."""

    launches: int
    host: float  # seconds of one busy core
    bytes: float
    instructions: float  # of threads; 0 where only traffic counts
    flops: float
    exponentials: float


@dataclass(frozen=True)
class Chip:
    """A second's worth of each."""

    name: str
    capability: int
    flops: float  # of large products in bfloat16
    bytes: float
    exponentials: float  # 16 · multiprocessors · clock
    instructions: float  # of threads: 128 · multiprocessors · clock

    def seconds(self, cost: Calculated) -> float:
        """The time that the formula above predicts."""
        busy = max(
            cost.bytes / self.bytes,
            cost.instructions / self.instructions,
            cost.flops / (self.flops / 2),  # products of narrow tiles
            cost.exponentials / self.exponentials,
        )
        total: float = max(cost.host, cost.launches * LAUNCH_SECONDS + busy)
        return total

    def least(self, work: Work) -> float:
        """The time that the rates allow."""
        seconds: float = Rates(self.flops, self.bytes, self.exponentials).time(work)[0]
        return seconds


# The flops and bytes of an H200 were measured; the others' are scaled by their data sheets.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("h200", 90, 790e12, 4.3e12, 3.7e12, 3.0e13),
        Chip("h100", 90, 790e12, 3.0e12, 3.7e12, 3.0e13),
        Chip("a100", 80, 250e12, 1.8e12, 2.4e12, 1.9e13),
    )
}
