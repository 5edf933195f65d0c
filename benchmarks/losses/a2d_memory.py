"""Peak memory of A2D's alignment loss over the length of sentences, as one picture.

    python -m benchmarks.losses.a2d_memory [--measure [PROVIDER …]]

On a CPU of one sentence, in float32: `--measure` adds to `results/a2d_memory/cpu.csv`. Where eager
PyTorch would take more than 4 GB it is predicted, by running the loss on tensors without data. On
a GPU of batches of 16,384 tokens, in bfloat16: what `fastkd bench --op alignment-row` left in
`results/cuda.csv`, and as long as no GPU was measured a prediction, with the kernels' workspaces
and PyTorch's allocator by formulas.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkd import watching
from fastkd.bench.operation import Shape, describe
from fastkd.bench.operations import OPERATIONS
from fastkd.bench.peak import peak_in_own_process
from fastkd.bench.record import Machine, Row, append, latest, read, this_machine
from fastkd.memory.step.cuda_formulas import CUBLAS_WORKSPACE, CudaPredictor, replay
from fastkd.memory.step.predictor import Predictor
from fastkd.memory.tracker import running_total
from fastkd.palette import PROVIDERS
from fastkd.pictures import digest, log_ticks, shown_by, write_picture
from fastkd.tables import size

RESULTS = Path(__file__).resolve().parents[1] / "results"
OPERATION = OPERATIONS["alignment-row"]
LENGTHS = tuple(128 << power for power in range(7))  # to 8192
LONGEST = {"reference": 1024, "compile": 2048, "torch-uncompiled": 8192, "torch": 8192}
GPU_TOKENS = 16384
NAMES = {
    "reference": "eager PyTorch",
    "compile": "torch.compile of it",
    "torch-uncompiled": "fastkd without a C++ compiler",
    "torch": "fastkd, torch",
    "triton": "fastkd, triton",
}
CPU = torch.device("cpu")
Curves = dict[str, dict[int, float]]  # by provider: bytes by length


def of_length(length: int, tokens: int | None = None) -> Shape:
    """Of one sentence, or of a batch of so many tokens."""
    return {**OPERATION.sizes, "B": tokens // length if tokens else 1, "T": length}


def measure(provider: str, file: Path) -> None:
    for length in LENGTHS:
        if length > LONGEST[provider]:
            break
        shape = of_length(length)
        found = peak_in_own_process(OPERATION.name, shape, torch.float32, provider)
        row = Row(
            OPERATION.name, describe(shape), "float32", provider, "", "both", "ok",
            peak_bytes=found.peak, allocated_bytes=found.allocated,
        )  # fmt: skip
        append(file, this_machine(CPU), [row])
        print(f"{provider}, T={length}: {size(found.peak)}", flush=True)


def predict(
    shape: Shape,
    backend: str,
    dtype: torch.dtype = torch.bfloat16,
    predictor: type[Predictor] = CudaPredictor,
) -> int:
    """Bytes above the inputs that a forward and a backward pass take, on CUDA or on a CPU."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with watching.pretending(watching.Pretence(fused=True)):
        with mode:
            inputs = OPERATION.inputs(shape, dtype, CPU, seed=0)
        tracker = predictor(mode)
        with tracker:
            OPERATION.loss(backend)(inputs).backward()
    if predictor is CudaPredictor:
        return replay(tracker.blocks)["peak allocated"] - CUBLAS_WORKSPACE
    return int(running_total(tracker.blocks, tracker.time).max())


def curves(results: Sequence[tuple[Machine, Row]], tokens: int | None = None) -> Curves:
    """Of the results with the usual maps, of one sentence or of batches of so many tokens."""
    found: Curves = {}
    for _, row in results:
        if row.operation != OPERATION.name or row.direction != "both" or not row.peak_bytes:
            continue
        shape = OPERATION.shape(row.shape)
        if row.provider in NAMES and shape == of_length(shape["T"], tokens):
            found.setdefault(row.provider, {})[shape["T"]] = float(row.peak_bytes)
    return found


def panels() -> dict[str, tuple[Curves, Curves]] | None:
    """By title: what was measured and what is predicted. None where no CPU was measured."""
    file = RESULTS / "a2d_memory" / "cpu.csv"
    if not file.exists():
        return None
    gpu = RESULTS / "cuda.csv"
    on_gpu = curves(latest(read(gpu)), GPU_TOKENS) if gpu.exists() else {}
    on_cpu: Curves = {
        "reference": {
            t: predict(of_length(t), "reference", torch.float32, Predictor) for t in LENGTHS
        }
    }
    predicted: Curves = {}
    if not on_gpu:
        predicted = {
            name: {t: predict(of_length(t, GPU_TOKENS), name) for t in LENGTHS}
            for name in ("reference", "triton")
        }
    return {
        "CPU: one sentence, float32": (curves(latest(read(file))), on_cpu),
        f"GPU: {GPU_TOKENS:,} tokens, bfloat16": (on_gpu, predicted),
    }


def write(found: dict[str, tuple[Curves, Curves]], file: Path) -> None:
    """The predictions, beside what was measured."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("panel", "backend", "length", "predicted_bytes", "measured_bytes"))
        for title, (measured, predicted) in found.items():
            for name, curve in predicted.items():
                for t, peak in curve.items():
                    beside = measured.get(name, {}).get(t)
                    writer.writerow(
                        (title, name, t, int(peak), "" if beside is None else int(beside))
                    )


def plot(found: dict[str, tuple[Curves, Curves]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(10, 4.2), layout="constrained")
    for axis, (title, (measured, predicted)) in zip(axes, found.items(), strict=True):
        for name in NAMES:
            known, guessed = measured.get(name, {}), predicted.get(name, {})
            # A prediction goes on from where measuring ended.
            last = max(known, default=0)
            guessed = {t: known.get(t, peak) for t, peak in sorted(guessed.items()) if t >= last}
            for curve, line, source in ((known, "-o", ""), (guessed, "--", ", predicted")):
                if len(curve) > 1:
                    lengths, peaks = zip(*sorted(curve.items()), strict=True)
                    sizes = [peak / 2**20 for peak in peaks]
                    label = NAMES[name] + source
                    axis.plot(
                        lengths, sizes, line, color=PROVIDERS[name], label=label, markersize=4
                    )
        axis.set(xscale="log", yscale="log", title=title, xlabel="T, pieces a sentence")
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axis.set_yticks(*_mebibytes(axis.get_ylim()))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[0].set_ylabel("peak above the inputs")
    maps = f"{OPERATION.sizes['Ns']} student and {OPERATION.sizes['Nt']} teacher maps"
    figure.suptitle(f"Memory of A2D's loss, forward and backward: {maps}")
    write_picture(figure, file, _shown(file.parent), 110)


def _shown(folder: Path) -> str:
    """Of what the picture in this folder is to show."""
    tables = (folder / name for name in ("cpu.csv", "predicted.csv"))
    return digest([table.read_text(encoding="utf-8") for table in tables], PROVIDERS)


def stale() -> list[Path]:
    """The picture, if it does not show what lies beside it."""
    folder = RESULTS / "a2d_memory"
    file = folder / "memory.png"
    known = (folder / "cpu.csv").exists()
    return [file] if known and shown_by(file) != _shown(folder) else []


def _mebibytes(limits: tuple[float, float]) -> tuple[list[float], list[str]]:
    """Ticks, in MiB, where people have round numbers of MiB or GiB."""
    low, high = limits
    found = {tick: f"{tick:g} MiB" for tick in log_ticks(low, high) if tick < 1000}
    if high > 1024:
        found |= {1024 * t: f"{t:g} GiB" for t in log_ticks(max(low / 1024, 1), high / 1024)}
    return list(found), list(found.values())


def draw() -> Path | None:
    """The picture's file; None where no CPU was measured."""
    found = panels()
    if found is None:
        return None
    folder = RESULTS / "a2d_memory"
    write(found, folder / "predicted.csv")
    plot(found, folder / "memory.png")
    return folder / "memory.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", nargs="*", metavar="PROVIDER", choices=list(LONGEST))
    options = parser.parse_args()
    if options.measure is not None:
        for provider in options.measure or LONGEST:
            measure(provider, RESULTS / "a2d_memory" / "cpu.csv")
    print(draw() or "nothing is measured yet")


if __name__ == "__main__":
    main()
