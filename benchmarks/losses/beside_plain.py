"""The torch backend on a CPU beside plain PyTorch, and what it is held to.

    python -m benchmarks.losses.beside_plain [--only TEXT] [--seconds S]

Both take turns, and memory is measured in processes of its own. Speed is how many times faster the
backend is, memory its share of plain PyTorch's peak above the inputs. "plain off" is how far plain
PyTorch's loss is from the reference's: over whole long maps its float32 is noise, and its time is
its time all the same. The exit status says whether every case holds.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastkd.bench.operations import OPERATIONS
from fastkd.bench.rates import Rates
from fastkd.bench.record import Row
from fastkd.bench.run import Effort, run_case
from fastkd.tables import Line, Table, show

_CPU = torch.device("cpu")
_NO_RATES = Rates(1.0, 1.0, 1.0)  # bounds are not looked at


@dataclass(frozen=True)
class Case:
    operation: str
    shape: str
    speed: float  # at least
    memory: float | None = None  # at most

    def __str__(self) -> str:
        return f"{self.operation} {self.shape}"


def _cases() -> tuple[Case, ...]:
    sizes = (("B=2,T=1024", 12.0, 0.08), ("B=16,T=128", 5.0, None), ("B=64,T=32", 3.5, 1.0))
    rows = ((3072, 2.6, 0.12), (256, 1.5, 0.6))
    return (
        *(Case(f"alignment-{form}", *size) for form in ("row", "map", "mixture") for size in sizes),
        *(Case("linear-tie", f"N={n},V=16000,Ds=256,Dt=256", *held) for n, *held in rows),
        *(Case("linear-ce", f"N={n},V=16000,Ds=256,Dt=256", 1.0) for n in (32, 256, 3072)),
    )


CASES = _cases()


def measured(case: Case, seconds: float) -> tuple[float, float, float]:
    """(times faster, share of the memory, relative error of plain PyTorch's loss)"""
    operation = OPERATIONS[case.operation]
    effort = Effort(seconds=seconds, memory=case.memory is not None, any_plain=True)
    shape = operation.shape(case.shape)
    against = ("plain", "torch")
    rows = run_case(operation, shape, torch.float32, _CPU, against, _NO_RATES, effort)
    plain, ours = (_both(rows, name) for name in against)
    share = (ours.peak_bytes or 0) / (plain.peak_bytes or 1)
    return 1 / (ours.relative or float("inf")), share, plain.loss_difference or 0.0


def _both(rows: Sequence[Row], provider: str) -> Row:
    row = next(r for r in rows if r.provider == provider and r.direction == "both")
    if row.status != "ok":
        raise RuntimeError(f"{row.operation} {row.shape}, {provider}: {row.status}")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each case")
    options = parser.parse_args()
    lines: list[Line] = []
    good = True
    for case in CASES:
        if options.only not in str(case):
            continue
        speed, memory, off = measured(case, options.seconds)
        held = speed >= case.speed and (case.memory is None or memory <= case.memory)
        good &= held
        share, most = ("", "") if case.memory is None else (f"{memory:.3f}", f"{case.memory:g}")
        verdict = "" if held else "missed"
        figures = (f"{speed:.2f}", f"{case.speed:g}", share, most, f"{off:.0e}")
        lines.append((str(case), *figures, verdict))
    header = ("case", "times faster", "at least", "memory", "at most", "plain off", "")
    where = f"torch backend beside plain PyTorch, {torch.get_num_threads()} threads"
    show([Table(where, header, lines, [])])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
