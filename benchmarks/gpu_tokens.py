"""The token losses on a GPU: errors, determinism, and a sweep of times and memory.

`check(device)` and `sweep(device)` yield one dict a row, for whoever prints and stores them.
"""

import importlib
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastkd import linear_token_distillation_loss, token_distillation_loss

LOSSES = {
    "ce": {"ce_weight": 1.0, "kd_weight": 0.0},
    "ce+kd": {"ce_weight": 0.5, "kd_weight": 0.5, "label_smoothing": 0.1},
    "ce+kd+rank": {"ce_weight": 0.5, "kd_weight": 0.5, "rank_weight": 0.5, "top_k": 5},
}
SIZES = [(512, 32_000), (2048, 32_000), (16_384, 32_000), (512, 128_000), (4096, 128_000)]
WIDTH = 1024


def check(device: torch.device) -> Iterator[dict]:
    """Errors of loss and gradient against float64, beside those of the reference's own type."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for vocabulary in (1000, 32_001, 128_000):
            student, teacher, target = _logits(64, vocabulary, dtype, device)
            for name, options in LOSSES.items():
                truth = _dense("reference", student.double(), teacher.double(), target, options)
                plain = _dense("reference", student, teacher, target, options)
                ours = _dense("triton", student, teacher, target, options)
                again = _dense("triton", student, teacher, target, options)
                yield {
                    "check": f"dense {name}, {dtype}, V {vocabulary}",
                    "loss error": _error(ours[0], truth[0]),
                    "eager's": _error(plain[0], truth[0]),
                    "gradient error": _error(ours[1], truth[1]),
                    "eager's gradient": _error(plain[1], truth[1]),
                    "bit-equal twice": all(map(torch.equal, ours, again)),
                }
    yield _check_offsets(device)


def _check_offsets(device: torch.device) -> dict:
    """Rows past element 2³¹ of the logits, against the same rows by themselves."""
    rows, vocabulary = 2**31 // 131_072 + 8, 131_072
    student = torch.empty(rows, vocabulary, dtype=torch.float16, device=device).normal_()
    target = torch.full((rows,), -100, device=device)
    target[-4:] = 7
    whole = _dense("triton", student, None, target, LOSSES["ce"])
    tail = _dense("triton", student[-4:].clone(), None, target[-4:], LOSSES["ce"])
    same = torch.equal(whole[1][-4:], tail[1]) and not whole[1][:-4].any()
    return {"check": "dense ce past 2³¹ elements", "bit-equal twice": bool(same)}


def sweep(device: torch.device, sizes=SIZES, width: int = WIDTH) -> Iterator[dict]:
    """Forward and backward of every candidate: milliseconds and MiB above the inputs."""
    for rows, vocabulary in sizes:
        for name, options in LOSSES.items():
            for kind, candidates in (
                ("dense", _dense_candidates(rows, vocabulary, options, device)),
                ("linear", _linear_candidates(rows, vocabulary, width, name, options, device)),
            ):
                for candidate, step in candidates.items():
                    row = {"loss": f"{kind} {name}", "rows": rows, "V": vocabulary}
                    yield row | {"candidate": candidate} | _measure(step)


def _dense_candidates(rows: int, vocabulary: int, options: dict, device) -> dict[str, Callable]:
    student, teacher, target = _logits(rows, vocabulary, torch.bfloat16, device)

    def step(loss: Callable, backend: str) -> None:
        leaf = student.detach().requires_grad_()
        loss(leaf, teacher, target, backend=backend, **options).loss.backward()

    compiled = torch.compile(token_distillation_loss, dynamic=False)
    return {
        "eager": lambda: step(token_distillation_loss, "reference"),
        "compile": lambda: step(compiled, "reference"),
        "fastkd": lambda: step(token_distillation_loss, "triton"),
    }


def _linear_candidates(
    rows: int, vocabulary: int, width: int, name: str, options: dict, device
) -> dict[str, Callable]:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device) / shape[-1] ** 0.25
        return values.bfloat16()

    hidden, weight = random(rows, width), random(vocabulary, width)
    teacher = random(rows, 2 * width), random(vocabulary, 2 * width)
    target = torch.randint(vocabulary, (rows,), generator=generator, device=device)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]

    def step(loss: Callable, backend: str) -> None:
        found = loss(*leaves, *teacher, target, backend=backend, **options).loss
        torch.autograd.grad(found, leaves)

    compiled = torch.compile(linear_token_distillation_loss, dynamic=False)
    candidates = {
        "eager": lambda: step(linear_token_distillation_loss, "reference"),
        "compile": lambda: step(compiled, "reference"),
        "fastkd": lambda: step(linear_token_distillation_loss, "triton"),
    }
    return candidates | _others(name, leaves, teacher, target)


def _others(name: str, leaves: list[Tensor], teacher, target: Tensor) -> dict[str, Callable]:
    """Fused losses of other packages, where installed: CCE for ce, Liger for ce and for kd."""
    found: dict[str, Callable] = {}

    def grad(loss: Callable[[], Tensor]) -> Callable:
        return lambda: torch.autograd.grad(loss(), leaves)

    if name == "ce" and (cce := _optional("cut_cross_entropy")):
        found["cce"] = grad(lambda: cce.linear_cross_entropy(*leaves, target, reduction="sum"))
    if name == "ce" and (liger := _optional("liger_kernel.transformers")):
        cross_entropy = liger.LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["liger"] = grad(lambda: cross_entropy(leaves[1], leaves[0], target))
    if name == "ce+kd" and (liger := _optional("liger_kernel.chunked_loss")):
        divergence = liger.LigerFusedLinearJSDLoss(beta=0.0)
        found["liger"] = grad(
            lambda: divergence(leaves[0], leaves[1], teacher[0], teacher[1], target)
        )
    return found


def _optional(module: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _logits(rows: int, vocabulary: int, dtype: torch.dtype, device) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(rows + vocabulary)
    student, teacher = (
        (3 * torch.randn(rows, vocabulary, generator=generator, device=device)).to(dtype)
        for _ in range(2)
    )
    return student, teacher, torch.randint(vocabulary, (rows,), generator=generator, device=device)


def _dense(backend: str, student, teacher, target, options: dict) -> tuple[Tensor, Tensor]:
    leaf = student.detach().requires_grad_()
    loss = token_distillation_loss(leaf, teacher, target, backend=backend, **options).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def _error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def _measure(step: Callable, repeats: int = 15) -> dict:
    """Median and spread of CUDA events, and the rise of the allocator's peak over the inputs."""
    try:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        rise = torch.cuda.max_memory_allocated() - before
        times = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    except torch.cuda.OutOfMemoryError:
        return {"ms": float("inf"), "spread": 0.0, "MiB": float("inf")}
    quarters = statistics.quantiles(times, n=4)
    return {
        "ms": statistics.median(times),
        "spread": quarters[2] - quarters[0],
        "MiB": rise / 2**20,
    }
