"""Memory of attention alignment over the length of sentences, with a plot on logarithmic axes.

    python -m benchmarks.attention_memory [--longest T] [--longest-reference T] [--out FOLDER]

One forward and backward pass in float32 of a sentence of T queries and T keys, 2 student and 4
teacher maps with heads of 64. On the CPU it is how far resident memory rises above the inputs in
a process of its own that has done the same before, gradients included. What the triton backend
allocates on a GPU is predicted: by its own launcher, for tensors without data, with the scratch it
has where a device does not tell the size of its cache. `order` is the power of T with which memory
grows from the length before.
"""

import argparse
import csv
import math
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
from fastkd_kernels import common
from fastkd_kernels.attention_mixing import Settings
from fastkd_kernels.attention_query_key import QueryKeyAlignment

from benchmarks.attention_cpu import CPU, chosen
from fastkd.bench.alignment import Alignment
from fastkd.bench.tables import text_table
from fastkd.memory.resident import child_environment, resident, restart_peak

FOLDER = Path(__file__).parent / "results" / "attention"
SHAPE = {"B": 1, "Ns": 2, "Nt": 4, "D": 64}
CANDIDATES = ("reference", "torch", "torch without a compiler")
PREDICTED = "triton, predicted"
STYLE = {"reference": ("C7", "o"), "torch": ("C0", "o"), "torch without a compiler": ("C9", "o")}


def peak_here(length: int, candidate: str) -> int:
    operation = Alignment("map")
    loss = operation.loss(candidate.split()[0])
    inputs = operation.inputs({**SHAPE, "T": length}, torch.float32, CPU, 0)
    for again in (False, True):
        for tensor in inputs.values():
            tensor.grad = None
        if again:
            restart_peak()
        before = resident()[0]
        with chosen(candidate):
            loss(inputs).backward()
    return resident()[1] - before


def measured(length: int, candidate: str) -> int:
    """Bytes, in a process of its own."""
    code = (
        "from benchmarks.attention_memory import peak_here; "
        f"print(peak_here({length}, {candidate!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=child_environment(1),
    )
    return int(done.stdout)


def predicted(length: int) -> int:
    """Bytes that the triton backend allocates, gradients included."""
    sizes = []

    def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        sizes.append(tensor.nbytes)
        return tensor

    def side(maps: int) -> tuple[torch.Tensor, torch.Tensor]:
        tensor = torch.empty(SHAPE["B"], maps, length, SHAPE["D"], device="meta")
        return tensor, tensor

    settings = Settings(0.125, 0.125, False, "map", 1.0, False, True, True)
    weight = torch.empty(SHAPE["Nt"], SHAPE["Ns"], device="meta")
    with mock.patch.object(common, "empty", empty):
        QueryKeyAlignment(
            side(SHAPE["Ns"]), side(SHAPE["Nt"]), weight, None, None, None, settings, torch.float32
        )._allocate()
    return sum(sizes)


def plot(found: dict[str, dict[int, int]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, peaks in found.items():
        colour, marker = STYLE.get(name, ("C2", "x"))
        line = "--" if name == PREDICTED else "-"
        sizes = [peak / 2**20 for peak in peaks.values()]
        axis.plot(list(peaks), sizes, line, color=colour, marker=marker, label=name)
    lengths = sorted({length for peaks in found.values() for length in peaks})
    axis.set(xscale="log", yscale="log", xlabel="T", ylabel="peak MiB above the inputs")
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    maps = f"{SHAPE['Ns']} student and {SHAPE['Nt']} teacher maps"
    axis.set_title(f"Attention alignment, forward and backward: {maps}", fontsize="medium")
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--longest-reference", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    found: dict[str, dict[int, int]] = {name: {} for name in (*CANDIDATES, PREDICTED)}
    lines = []
    length = 128
    while length <= arguments.longest:
        for name, peaks in found.items():
            if name == "reference" and length > arguments.longest_reference:
                continue
            peak = peaks[length] = (
                predicted(length) if name == PREDICTED else measured(length, name)
            )
            before = peaks.get(length // 2)
            order = f"{math.log2(peak / before):.2f}" if before else ""
            lines.append((f"T={length}, {name}", f"{peak / 2**20:.1f}", order))
            print(*lines[-1], sep="\t", flush=True)
        length *= 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "memory.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("backend", "length", "peak_bytes"))
        writer.writerows((name, *each) for name, peaks in found.items() for each in peaks.items())
    plot(found, arguments.out / "memory.png")
    print(text_table(("case", "peak, MiB", "order"), lines))


if __name__ == "__main__":
    main()
