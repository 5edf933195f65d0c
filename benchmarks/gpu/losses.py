"""Every loss and training step on a GPU against its alternatives, within a given time.

    python -m benchmarks.gpu.losses OUT --seconds S [--first N] [--tiny]

Rows go to `OUT/cuda.csv` as they are measured. It needs torch, Triton and NumPy; training steps
also need the trainer's packages, and are absent without them. A case that hangs ends the process,
and one that breaks the device does too: `--first` goes on with the cases behind it.
"""

import argparse
import faulthandler
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastkd.bench.command import Question, answer
from fastkd.bench.record import Row
from fastkd.bench.run import Effort
from fastkd.bench.tables import TRAINING, fastest, milliseconds, ratio, tables
from fastkd.tables import Line, size, text_table

_COMPILE = ("compile",)
_OTHERS = ("reference", "plain", "torch", "triton", "liger", "cce", "pytorch", "pytorch-chunked")
_ALL = (
    "reference",
    "plain",
    "compile",
    "torch",
    "triton",
    "liger",
    "cce",
    "pytorch",
    "pytorch-chunked",
)
_EFFORT = Effort(seconds=0.5, least=7)
_TINY_EFFORT = Effort(seconds=0.0, least=2, memory=False)
CASE_SECONDS = 90.0  # compiling for a new shape included


@dataclass(frozen=True)
class Case:
    operation: str
    shape: str
    against: tuple[str, ...] = _OTHERS

    def __str__(self) -> str:
        return f"{self.operation} {self.shape} ({', '.join(self.against)})"


def _cases(operation: str, shapes: Sequence[str], against: tuple[str, ...] = _OTHERS) -> list[Case]:
    return [Case(operation, shape, against) for shape in shapes]


_MAIN = ("B=128,T=32", "B=8,T=2048", "B=64,T=64,Ns=32,Nt=96")
_LENGTHS = tuple(f"B={16384 // t},T={t}" for t in (64, 128, 256, 512, 1024, 4096))
_LARGE = "N=8192,V=128256,Ds=2048,Dt=4096"
# The most telling first: what there is no time for is at the end. Compiling takes the longest.
CASES = (
    *_cases("alignment-row", _MAIN, _ALL),
    *_cases("linear-kd", ("N=1024", "N=8192"), _ALL),
    *_cases("linear-ce", ("N=1024", "N=8192")),
    *_cases("linear-tie", ("N=1024", "N=8192")),
    *_cases("alignment-map", _MAIN),
    *_cases("alignment-mixture", _MAIN),
    Case(TRAINING, "cuda", ("reference", "torch", "triton")),
    *_cases("alignment-row", _LENGTHS),
    *_cases("alignment-plain", _MAIN[:2]),
    *_cases("logits-kd", ("N=512", "N=16384", "N=4096,V=128000")),
    *_cases("logits-tie", ("N=512", "N=16384", "N=4096,V=128000")),
    *_cases("linear-ce", (_LARGE,)),
    *_cases("linear-kd", (_LARGE,)),
    *_cases("linear-tie", (_LARGE,)),
    *_cases("alignment-map", _MAIN[:2], _COMPILE),
    *_cases("alignment-mixture", _MAIN[:2], _COMPILE),
    *_cases("linear-tie", ("N=8192",), _COMPILE),
    *_cases("logits-kd", ("N=16384",), _COMPILE),
    *_cases("logits-tie", ("N=16384",), _COMPILE),
    *_cases("linear-ce", ("N=8192",), _COMPILE),
    *_cases("alignment-row", _LENGTHS, _COMPILE),
)
_TINY_OTHERS = ("reference", "plain", "torch", "triton", "cce")
TINY = (
    Case("alignment-row", "B=1,Ns=1,Nt=2,T=4,D=16", _TINY_OTHERS),
    Case("linear-kd", "N=3,V=70,Ds=8,Dt=16", _TINY_OTHERS),
    Case(TRAINING, "smoke", ("torch",)),
    Case("logits-tie", "N=3,V=70", ("torch",)),
)


def measure(cases: Sequence[Case], first: int, out: Path, seconds: float, device: str) -> int:
    """Measures the cases from `first` on; the number of the first that there was no time for."""
    end = time.monotonic() + seconds
    for number, case in enumerate(cases[first:], first):
        left = end - time.monotonic()
        if left <= 0:
            return number
        print(f"case {number}: {case}", flush=True)
        limit = min(CASE_SECONDS, left)
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__ or 2)
        question = Question(
            operations=(case.operation,),
            device=torch.device(device),
            shapes=(case.shape,),
            against=case.against,
            effort=_EFFORT if device == "cuda" else _TINY_EFFORT,
            out=out,
        )
        try:
            for rows in answer(question):
                for table in tables(rows):
                    print(table.text(), flush=True)
        except ImportError as error:
            print(f"absent: needs the package {error.name}", flush=True)
        except Exception as error:  # the others have their turn
            print(f"failed: {type(error).__name__}: {error}", flush=True)
        if device == "cuda":
            torch.cuda.synchronize()  # raises where the case broke the device
            torch.cuda.empty_cache()
        faulthandler.cancel_dump_traceback_later()
    return len(cases)


def short_table(rows: Sequence[Row]) -> str:
    """One line a case: our best backend beside plain PyTorch and the best of the others."""
    lines: list[Line] = []
    both = [row for row in rows if row.direction == "both" and row.status == "ok"]
    for case in dict.fromkeys((row.operation, row.shape) for row in both):
        own = {row.provider: row for row in both if (row.operation, row.shape) == case}
        ours = fastest(own, ("torch", "triton"))
        others = fastest(own, ("compile", "liger", "cce", "pytorch", "pytorch-chunked"))
        eager = own.get("plain", own.get("reference"))
        if ours is None:
            continue
        lines.append(
            (
                " ".join(case),
                ours.provider,
                milliseconds(ours.median_ms),
                "" if ours.share is None else f"{ours.share:.0%}",
                size(ours.peak_bytes),
                ratio(eager.median_ms, ours.median_ms) if eager else "",
                size(eager.peak_bytes) if eager else "",
                f"{ratio(others.median_ms, ours.median_ms)} {others.provider}" if others else "",
            )
        )
    header = ("case", "ours", "ms", "pace", "peak", "x plain", "its peak", "x best other")
    return text_table(header, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    cases = TINY if options.tiny else CASES
    done = measure(cases, options.first, options.out, options.seconds, options.device)
    print(f"next: {done}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
