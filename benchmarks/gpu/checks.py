"""The kernels' errors at sizes of training, beside those of plain PyTorch.

    python -m benchmarks.gpu.checks [--device cpu] [--tiny]

Truth is the reference backend in float64 on the same numbers. Losses (of all rows or maps, as one
vector) and gradients may be three times as far from it as the reference in the inputs' type is, and
a few roundings: of float32, and one of the type that a gradient is stored in. Beside attention of
half types stands plain PyTorch rounded where the kernels round. The same call twice gives the same
bits.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastkd import token_distillation_loss
from fastkd.bench.alignment import Alignment
from fastkd.bench.operation import Inputs, Loss, describe, learned
from fastkd.bench.operations import OPERATIONS
from tests.compiled.cases import plain

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
ATTENTION = ("alignment-row", "alignment-map", "alignment-mixture", "alignment-plain")
LOGITS = ("logits-kd", "logits-tie")
LINEAR = ("linear-ce", "linear-kd", "linear-tie")
SHAPES = {
    **dict.fromkeys(ATTENTION, ("B=32,T=32", "B=8,T=64,Ns=32,Nt=96", "B=1,T=1024", "B=1,T=2000")),
    **dict.fromkeys(LOGITS, ("N=64,V=1000", "N=64,V=32001", "N=64,V=128000")),
    **dict.fromkeys(LINEAR, ("N=512,V=32000", "N=300,V=50257,Ds=768,Dt=1024")),
}
TINY = {
    "alignment-row": ("B=1,Ns=2,Nt=3,T=9,D=16",),
    "logits-tie": ("N=3,V=70",),
    "linear-kd": ("N=3,V=70,Ds=8,Dt=16",),
}
Line = dict[str, Any]  # by column
COLUMNS = ("check", "ok", "loss", "loss of eager", "gradient", "gradient of eager", "same bits")


def checks(device: torch.device, tiny: bool = False) -> Iterator[Line]:
    """One row for each operation, shape and type; `ok` says whether the bound holds."""
    for dtype in DTYPES[1:2] if tiny else DTYPES:
        for name, shapes in (TINY if tiny else SHAPES).items():
            # Which of two nearly equal logits is larger depends on how they were rounded.
            if name == "linear-tie" and dtype != torch.float32:
                continue
            for shape in shapes:
                label = f"{name} {shape} {str(dtype).removeprefix('torch.')}"
                try:
                    yield _check(label, name, shape, dtype, device)
                except torch.OutOfMemoryError:
                    yield {"check": label, "ok": "absent: out of memory"}
                except Exception as error:  # the others have their turn
                    reason = " ".join(str(error).split())[:200]
                    yield {"check": label, "ok": f"failed: {type(error).__name__}: {reason}"}
    if device.type == "cuda":
        yield _offsets(device)


def _check(label: str, name: str, text: str, dtype: torch.dtype, device: torch.device) -> Line:
    operation = OPERATIONS[name]
    inputs = operation.inputs(operation.shape(text), dtype, device, seed=1)
    double: Inputs = {}
    for name, value in inputs.items():
        double[name] = value
        if isinstance(value, Tensor) and value.is_floating_point():
            double[name] = value.detach().double().requires_grad_(value.requires_grad)
    truth = _outcome(operation.losses("reference"), double)
    if isinstance(operation, Alignment) and dtype != torch.float32:
        near = _rounded(operation, inputs, dtype)
    else:
        near = _outcome(operation.losses("reference"), inputs)
    ours, again = (_outcome(operation.losses("triton"), inputs) for _ in range(2))
    errors = [_error(mine, exact) for mine, exact in zip(ours, truth, strict=True)]
    eager = [_error(theirs, exact) for theirs, exact in zip(near, truth, strict=True)]
    roundings = [8 * torch.finfo(torch.float32).eps + torch.finfo(x.dtype).eps for x in ours]
    bounds = [3 * theirs + own for theirs, own in zip(eager, roundings, strict=True)]
    same = all(map(torch.equal, ours, again))
    held = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    row = {"check": label, "ok": "ok" if held and same else "WRONG"}
    figures = (errors[0], eager[0], max(errors[1:]), max(eager[1:]))
    return row | dict(zip(COLUMNS[2:], (*(f"{x:.2e}" for x in figures), same), strict=True))


def _rounded(operation: Alignment, inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """As `_outcome` has it, with roundings where the kernels have them."""
    names = ("student_query", "student_key", "teacher_query", "teacher_key", "weight")
    tensors = [inputs.get(name) for name in names]
    kind = operation.normalization
    found: list[Tensor] = plain.alignment(tensors, dtype, torch.ones_like, kind, reduction="none")
    return found


def _outcome(losses: Loss, inputs: Inputs) -> list[Tensor]:
    value = losses(inputs)
    return [value.detach(), *torch.autograd.grad(value.sum(), learned(inputs))]


def _error(value: Tensor, truth: Tensor) -> float:
    norm = truth.double().norm()
    return float((value.double() - truth.double()).norm() / (norm if norm else 1))


def _offsets(device: torch.device) -> Line:
    """Rows past element 2³¹ of the logits, against the same rows by themselves."""
    rows, vocabulary = 2**31 // 131_072 + 8, 131_072
    student = torch.empty(rows, vocabulary, dtype=torch.float16, device=device).normal_()
    target = torch.full((rows,), -100, device=device)
    target[-4:] = 7

    def gradient(logits: Tensor, target: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        losses = token_distillation_loss(
            leaf, None, target, ce_weight=1.0, kd_weight=0.0, backend="triton"
        )
        return torch.autograd.grad(losses.loss, leaf)[0]

    whole, tail = gradient(student, target), gradient(student[-4:].clone(), target[-4:])
    same = bool(torch.equal(whole[-4:], tail) and not whole[:-4].any())
    shape = {"N": rows, "V": vocabulary}
    label = f"logits-ce {describe(shape)} float16, past element 2³¹"
    return {"check": label, "ok": "ok" if same else "WRONG", "same bits": same}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    good = True
    for row in checks(torch.device(options.device), options.tiny):
        good &= row["ok"] == "ok"
        writer.writerow(row)
        sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
