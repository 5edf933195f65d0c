"""Every loss and every training step on a GPU against its alternatives, within a given time.

`sweep(out, seconds)` needs torch, Triton and NumPy; training steps also need the trainer's
packages, and are listed as absent without them. Results go to `out/cuda.csv`, tables to
`out/benchmarks.txt`, and the short table is returned.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastkd.bench.command import TRAINING, Question, answer
from fastkd.bench.record import Row
from fastkd.bench.run import Effort
from fastkd.bench.tables import milliseconds, ratio, size, tables, text_table

_OTHERS = ("reference", "torch", "triton", "liger", "cce", "pytorch")
_COMPILED = ("reference", "compile", "torch", "triton", "liger", "cce", "pytorch")


@dataclass(frozen=True)
class Part:
    """What is measured with one question; compiling costs seconds a shape, so few shapes do."""

    operation: str
    shapes: tuple[str, ...] = ("cuda",)
    against: tuple[str, ...] = _OTHERS


# The most telling first: what time is too short for is at the end.
PARTS = (
    Part("alignment-row", ("B=128,T=32", "B=64,T=64,Ns=32,Nt=96", "B=8,T=2048"), _COMPILED),
    Part("linear-kd", ("N=1024", "N=8192"), _COMPILED),
    Part(TRAINING, against=("reference", "torch", "triton")),
    Part("alignment-row", tuple(f"B={16384 // t},T={t}" for t in (64, 128, 256, 512, 1024, 4096))),
    Part("alignment-map", ("B=128,T=32", "B=64,T=64,Ns=32,Nt=96", "B=8,T=2048")),
    Part("alignment-mixture", ("B=128,T=32", "B=64,T=64,Ns=32,Nt=96", "B=8,T=2048")),
    Part("alignment-plain", ("B=128,T=32", "B=8,T=2048")),
    Part("linear-ce", ("N=1024", "N=8192", "N=8192,V=128256,Ds=2048,Dt=4096")),
    Part("linear-tie", ("N=1024", "N=8192")),
    Part("logits-kd", ("N=1024", "N=16384")),
    Part("logits-tie", ("N=1024", "N=16384")),
)


def sweep(out: Path, seconds: float, parts: tuple[Part, ...] = PARTS, device: str = "cuda") -> str:
    """Measures until done or until the time is spent; the short table."""
    end = time.monotonic() + seconds
    texts, found = [], []
    for part in parts:
        if time.monotonic() > end:
            texts.append(f"{part.operation} {' '.join(part.shapes)}: not measured, out of time")
            continue
        question = Question(
            operations=(part.operation,),
            device=torch.device(device),
            shapes=part.shapes,
            against=part.against,
            effort=Effort(seconds=0.5, least=7),
            out=out,
        )
        try:
            for rows in answer(question):
                found += rows
                texts += [table.text() for table in tables(rows)]
                print(texts[-1], flush=True)
                if time.monotonic() > end:
                    texts.append(f"{part.operation}: what follows is not measured, out of time")
                    break
        except ImportError as error:
            texts.append(f"{part.operation}: absent: needs the package {error.name}")
        except Exception as error:  # one operation's failure leaves the others their turn
            texts.append(f"{part.operation}: failed: {type(error).__name__}: {error}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return short_table(found)


def short_table(rows: list[Row]) -> str:
    """One line a case: our best backend beside eager PyTorch and the best of the others."""
    lines = []
    both = [row for row in rows if row.direction == "both" and row.status == "ok"]
    for case in dict.fromkeys((row.operation, row.shape) for row in both):
        own = {row.provider: row for row in both if (row.operation, row.shape) == case}
        ours = _fastest(own, ("torch", "triton"))
        others = _fastest(own, ("compile", "liger", "cce", "pytorch"))
        eager = own.get("reference")
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
    header = ("case", "ours", "ms", "bound", "peak", "x eager", "its peak", "x best other")
    return text_table(header, lines)


def _fastest(found: dict[str, Row], names: tuple[str, ...]) -> Row | None:
    present = [found[name] for name in names if name in found]
    return min(present, key=lambda row: row.median_ms or 0.0, default=None)
