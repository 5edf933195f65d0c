"""Peak memory of A2D's alignment loss over the length of sentences, as one picture.

    python -m benchmarks.a2d_memory

What a CPU took is read from `results/cpu.csv`, where `fastkd bench --op alignment-row` put it; what
a GPU takes from `results/cuda.csv`, and as long as no GPU was measured it is predicted: by running
the loss on tensors without data, with the kernels' workspaces and PyTorch's allocator by formulas.
Batches hold the same number of tokens at every length.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkd.bench.operation import Shape
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.record import Machine, Row, latest, read
from fastkd.memory.cuda_formulas import CUBLAS_WORKSPACE, CudaPredictor, kernels_offered, replay
from fastkd.memory.predictor import Predictor

RESULTS = Path(__file__).resolve().parent / "results"
FOLDER = RESULTS / "a2d_memory"
OPERATION = OPERATIONS["alignment-row"]
NAMES = {"reference": "eager", "compile": "torch.compile", "torch": "fastkd", "triton": "fastkd"}
COLOURS = {"reference": "C7", "compile": "C1", "torch": "C0", "triton": "C0"}
Curve = list[tuple[int, float]]  # length, bytes


def predict(
    shape: Shape,
    backend: str,
    dtype: torch.dtype = torch.bfloat16,
    predictor: type[Predictor] = CudaPredictor,
) -> int:
    """Bytes above the inputs that a forward and a backward pass take, on CUDA or on a CPU."""
    mode, cpu = FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu")
    with kernels_offered():
        with mode:
            inputs = OPERATION.inputs(shape, dtype, cpu, seed=0)
        tracker = predictor(mode)
        with tracker.scopes.watching(), tracker:
            OPERATION.loss(backend)(inputs).backward()
    return replay(tracker.blocks)["peak allocated"] - CUBLAS_WORKSPACE


def sizes(row: Row) -> dict[str, int]:
    return OPERATION.shape(row.shape)


def swept(rows: Sequence[tuple[Machine, Row]]) -> list[Row]:
    """Those of the loss that have the usual maps, and the tokens of most."""
    found = [
        row
        for _, row in rows
        if row.operation == OPERATION.name and row.direction == "both" and row.peak_bytes
    ]
    usual = {**OPERATION.sizes, "B": 0, "T": 0}
    found = [row for row in found if {**sizes(row), "B": 0, "T": 0} == usual]
    tokens = [sizes(row)["B"] * sizes(row)["T"] for row in found]
    most = max(tokens, key=tokens.count, default=0)
    return [row for row, count in zip(found, tokens, strict=True) if count == most]


def curves(rows: Sequence[Row]) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for row in rows:
        found.setdefault(row.provider, []).append((sizes(row)["T"], float(row.peak_bytes or 0)))
    return {name: sorted(curve) for name, curve in found.items() if name in NAMES}


def predicted(rows: Sequence[Row]) -> dict[str, Curve]:
    """For the shapes of `rows`; kept beside the picture."""
    shapes = list({row.shape: sizes(row) for row in rows}.values())
    found: dict[str, Curve] = {
        backend: sorted((shape["T"], float(predict(shape, backend))) for shape in shapes)
        for backend in ("reference", "triton")
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "predicted.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("backend", "length", "peak_bytes"))
        writer.writerows((name, t, int(peak)) for name, curve in found.items() for t, peak in curve)
    return found


def plot(groups: dict[str, dict[str, Curve]], file: Path) -> None:
    """groups: by where the figures come from; those not measured here are dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for place, (source, found) in enumerate(groups.items()):
        for name, curve in found.items():
            lengths, peaks = zip(*curve, strict=True)
            axis.plot(
                lengths,
                [peak / 2**20 for peak in peaks],
                "--x" if place else "-o",
                color=COLOURS[name],
                label=f"{NAMES[name]}, {source}",
            )
            axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.set(xscale="log", yscale="log", xlabel="T, pieces a sentence", ylabel="peak MiB")
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    axis.set_title("A2D's loss, forward and backward, above its inputs", fontsize="medium")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw() -> Path | None:
    """The picture's file; None where no CPU was measured."""
    cpu, cuda = RESULTS / "cpu.csv", RESULTS / "cuda.csv"
    rows = swept(latest(read(cpu))) if cpu.exists() else []
    if not rows:
        return None
    groups = {"CPU, measured in float32": curves(rows)}
    gpu = swept(latest(read(cuda))) if cuda.exists() else []
    if gpu:
        groups["GPU, measured in bfloat16"] = curves(gpu)
    else:
        groups["GPU, predicted in bfloat16"] = predicted(rows)
    plot(groups, FOLDER / "memory.png")
    return FOLDER / "memory.png"


if __name__ == "__main__":
    print(draw() or "nothing is measured yet")
