"""Two commits side by side: the same benchmarks from a checkout of each, in turns.

    python -m benchmarks.losses.compare BEFORE AFTER [--op NAME …] [--shapes SHAPE …] [--rounds N]

Each commit is checked out into a temporary folder and measured by its own `fastkd.bench`. Rounds
alternate, so that whatever else the machine does falls on both; the ratio, AFTER over BEFORE, is
the median over the rounds.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
_MEASURE = """
import json, sys, statistics
import torch
from fastkd.bench.clock import Clock
from fastkd.bench.operations import OPERATIONS
name, text, backend, repeats = json.loads(sys.argv[1])
operation, device = OPERATIONS[name], torch.device({device!r})
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
clock, loss = Clock(device), operation.loss(backend)
inputs = operation.inputs(operation.shape(text), dtype, device, seed=0)
times = [clock.once(loss, inputs).both for _ in range(repeats + 2)][2:]
print(json.dumps(statistics.median(times)))
"""


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    place = folder / commit.replace("/", "_")
    git = ["git", "-C", str(HERE), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", "--force", place, commit], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", place], check=True)


def measure(place: Path, device: str, request: list[str | int]) -> float | None:
    """Median seconds of a forward and backward pass; None where the commit cannot do it."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(device=device), json.dumps(request)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{place}:{place / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return None
    return float(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--op", nargs="+", default=["alignment-row", "linear-kd"])
    parser.add_argument("--shapes", nargs="+", default=[])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # So that the checkouts are removed then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    from fastkd.bench.operation import describe
    from fastkd.bench.operations import OPERATIONS
    from fastkd.bench.tables import milliseconds
    from fastkd.tables import Line, text_table

    lines: list[Line] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        checkout(options.before, Path(folder) / "before") as before,
        checkout(options.after, Path(folder) / "after") as after,
    ):
        for name in options.op:
            for shape in options.shapes or map(describe, OPERATIONS[name].sweep(options.device)):
                request: list[str | int] = [name, shape, options.backend, options.repeats]
                pairs = []
                for _ in range(options.rounds):
                    earlier, later = (
                        measure(at, options.device, request) for at in (before, after)
                    )
                    if earlier is None or later is None:
                        break
                    pairs.append((earlier, later))
                else:
                    medians = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
                    ratio = statistics.median(later / earlier for earlier, later in pairs)
                    figures = [*map(milliseconds, medians), f"{ratio:.2f}"]
                    lines.append((f"{name} {shape}", *figures))
                    continue
                lines.append((f"{name} {shape}", "", "", "not in both commits"))
    print(text_table(("case", f"{options.before}, ms", f"{options.after}, ms", "ratio"), lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
