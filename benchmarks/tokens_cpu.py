"""The token losses from hidden states on a CPU, beside PyTorch.

    python -m benchmarks.tokens_cpu [--rounds N] [--threads N] [--case NAME …]

One forward and backward pass. Candidates take turns, so that whatever else the machine does falls
on all of them; `slower` is the median over the rounds of a candidate's time over that of the torch
backend. With one thread it is processor time, which other work hardly touches. `peak` is how far
resident memory rises above the inputs in a process of its own that has computed a small case
before, gradients included.

- reference: the reference backend
- plain: the same losses as one writes them by hand, without a thought for −inf, masks and ties
- cross entropy: `torch.nn.functional.linear_cross_entropy`, by default and with its chunks
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import linear_token_distillation_loss
from fastkd.bench.tables import text_table
from fastkd.memory.resident import child_environment, resident, restart_peak

TOP_K = 5


@dataclass(frozen=True)
class Case:
    rows: int
    vocabulary: int
    width: int
    weights: tuple[float, float, float]  # of ce, kd, rank
    dtype: torch.dtype = torch.float32
    autocast: bool = False


FULL, KD, CE = (0.5, 0.5, 0.5), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)
CASES = {
    "full-3072": Case(3072, 16000, 256, FULL),
    "full-256": Case(256, 16000, 256, FULL),
    "full-32": Case(32, 16000, 256, FULL),
    "ce-3072": Case(3072, 16000, 256, CE),
    "ce-256": Case(256, 16000, 256, CE),
    "kd-2048": Case(2048, 8000, 512, KD),
    "kd-2048-autocast": Case(2048, 8000, 512, KD, autocast=True),
    "ce-2048-autocast": Case(2048, 8000, 512, CE, autocast=True),
}
Inputs = tuple[Tensor, ...]


def inputs_of(case: Case) -> Inputs:
    """Student's hidden states and weight, the teacher's, and the target."""
    torch.manual_seed(0)
    shapes = [(case.rows, case.width), (case.vocabulary, case.width)] * 2
    hidden, weight, *teacher = (torch.randn(shape, dtype=case.dtype) / 2 for shape in shapes)
    target = torch.randint(case.vocabulary, (case.rows,))
    return hidden.requires_grad_(), weight.requires_grad_(), *teacher, target


def ours(case: Case, backend: str) -> Callable[[Inputs], Tensor]:
    ce, kd, rank = case.weights

    def loss(inputs: Inputs) -> Tensor:
        hidden, weight, *teacher, target = inputs
        return linear_token_distillation_loss(
            hidden, weight, *(teacher if kd else (None, None)), target, ce_weight=ce, kd_weight=kd,
            rank_weight=rank, top_k=TOP_K, reduction="mean", backend=backend,
        ).loss  # fmt: skip

    return loss


def plain(case: Case) -> Callable[[Inputs], Tensor]:
    ce, kd, rank = case.weights

    def loss(inputs: Inputs) -> Tensor:
        hidden, weight, teacher, teacher_weight, target = inputs
        log_p = F.log_softmax(F.linear(hidden, weight).float(), -1)
        total = ce * F.nll_loss(log_p, target)
        if kd:
            logits = F.linear(teacher, teacher_weight).float()
            log_q = F.log_softmax(logits, -1)
            total = total + kd * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        if rank:
            t, s = logits.topk(TOP_K).indices, log_p.topk(TOP_K).indices
            p_t, p_s = log_p.gather(1, t).exp(), log_p.gather(1, s).exp()
            preferred = logits.gather(1, t)[:, :, None] > logits.gather(1, s)[:, None]
            pairs = F.relu(p_s[:, None] - p_t[:, :, None]) * preferred
            first = F.relu(p_t - p_t[:, :1])
            total = total + rank * (first.sum(-1) + pairs.sum((-2, -1))).mean()
        return total

    return loss


def cross_entropy(chunks: bool) -> Callable[[Inputs], Tensor]:
    options = torch.nn.LinearCrossEntropyOptions() if chunks else None
    return lambda inputs: F.linear_cross_entropy(inputs[0], inputs[1], inputs[-1], options=options)


def candidates(case: Case) -> dict[str, Callable[[Inputs], Tensor]]:
    found = {"torch": ours(case, "torch"), "reference": ours(case, "reference")}
    found["plain"] = plain(case)
    if case.weights == CE and hasattr(F, "linear_cross_entropy"):
        found |= {"cross entropy": cross_entropy(False), "with chunks": cross_entropy(True)}
    return found


def step(case: Case, loss: Callable[[Inputs], Tensor], inputs: Inputs) -> float:
    """Seconds of a forward and backward pass."""
    inputs[0].grad = inputs[1].grad = None
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        value = loss(inputs)
    value.backward()
    return clock() - begin


def times(case: Case, rounds: int) -> dict[str, list[float]]:
    inputs, losses = inputs_of(case), candidates(case)
    measured: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds + 1):
        for name, loss in losses.items():
            measured[name].append(step(case, loss, inputs))
    return {name: seconds[1:] for name, seconds in measured.items()}


def peak_here(name: str, candidate: str) -> int:
    case = CASES[name]
    loss, small = candidates(case)[candidate], Case(8, 64, 16, case.weights, case.dtype)
    step(small, loss, inputs_of(small))
    inputs = inputs_of(case)
    restart_peak()
    before = resident()[0]
    step(case, loss, inputs)
    return resident()[1] - before


def peak(name: str, candidate: str) -> int:
    """Bytes, measured in a process of its own."""
    code = f"from benchmarks.tokens_cpu import peak_here; print(peak_here({name!r}, {candidate!r}))"
    environment = child_environment(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for name in arguments.case:
        measured = times(CASES[name], arguments.rounds)
        for candidate, seconds in measured.items():
            ratios = [a / b for a, b in zip(seconds, measured["torch"], strict=True)]
            median, slower = statistics.median(seconds), statistics.median(ratios)
            memory = peak(name, candidate) / 2**20
            lines.append(
                (f"{name}, {candidate}", f"{median * 1e3:.1f}", f"{slower:.2f}", f"{memory:.1f}")
            )
    print(text_table(("case", "ms", "slower", "peak, MiB"), lines))


if __name__ == "__main__":
    main()
