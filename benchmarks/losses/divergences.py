"""Cross-entropy and JSD from hidden states on this machine, beside peers on the same tensors.

    python -m benchmarks.losses.divergences [--rows 3072] [--vocabulary 16000] [--width 256]

Time of a forward and a backward pass in turns, the median; memory that a process of its own holds
at most beyond its inputs and the gradients. Peers that are not installed are named as absent.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import linear_token_distillation_loss
from fastkd.memory.resident import child_environment, resident, restart_peak
from fastkd.tables import Line, text_table

BETA = 0.5
Loss = Callable[[list[Tensor]], Tensor]


def inputs_of(rows: int, vocabulary: int, width: int) -> list[Tensor]:
    """Student's states and weight, the teacher's, targets."""
    torch.manual_seed(0)
    sides = [torch.randn(size, width) / width**0.5 for size in (rows, vocabulary) * 2]
    learned = [4 * each.requires_grad_() for each in sides[:2]]
    constants = [(4 * each).detach() for each in sides[2:]]
    return [*(x.detach().requires_grad_() for x in learned), *constants,
            torch.randint(vocabulary, (rows,))]  # fmt: skip


def fastkd(given: list[Tensor]) -> Tensor:
    return linear_token_distillation_loss(
        *given, ce_weight=0.5, kd_weight=0.5, divergence="jsd", beta=BETA, reduction="mean"
    ).loss


def plain(given: list[Tensor]) -> Tensor:
    student, weight, teacher, teacher_weight, target = given
    log_p = F.linear(student, weight).log_softmax(-1)
    log_q = F.linear(teacher, teacher_weight).log_softmax(-1)
    shares = torch.tensor([BETA, 1 - BETA]).log()
    log_m = torch.logaddexp(log_q + shares[0], log_p + shares[1])
    jsd = BETA * log_q.exp() * (log_q - log_m) + (1 - BETA) * log_p.exp() * (log_p - log_m)
    return 0.5 * F.nll_loss(log_p, target) + 0.5 * jsd.sum(-1).mean()


def liger() -> Loss:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.5, 0.5, beta=BETA, compiled=False)

    def of(given: list[Tensor]) -> Tensor:
        value: Tensor = loss(*given)
        return value

    return of


def trl() -> Loss:
    from trl.experimental.gkd import GKDTrainer

    peer: Callable[..., Tensor] = GKDTrainer.generalized_jsd_loss

    def loss(given: list[Tensor]) -> Tensor:
        student, weight, teacher, teacher_weight, target = given
        ours, theirs = F.linear(student, weight), F.linear(teacher, teacher_weight)
        jsd: Tensor = peer(ours, theirs, beta=BETA)
        value: Tensor = 0.5 * F.cross_entropy(ours, target) + 0.5 * jsd
        return value

    return loss


WAYS: dict[str, Callable[[], Loss]] = {
    "plain PyTorch": lambda: plain,
    "fastkd": lambda: fastkd,
    "torch.compile": lambda: torch.compile(plain),
    "Liger": liger,
    "TRL": trl,
}


def once(loss: Loss, given: list[Tensor]) -> tuple[float, float]:
    """Seconds and the loss."""
    for each in given[:2]:
        each.grad = None
    start = time.perf_counter()
    value = loss(given)
    value.backward()
    return time.perf_counter() - start, float(value.detach())


def held(way: str, sizes: list[int]) -> float:
    """MB at most beyond inputs and gradients, of a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--memory", way, *map(str, sizes)]
    environment = child_environment(torch.get_num_threads())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_held(way: str, sizes: list[int]) -> float:
    loss, given = WAYS[way](), inputs_of(*sizes)
    once(loss, given)
    for each in given[:2]:
        each.grad = None
    restart_peak()
    before = resident()[0]
    once(loss, given)
    gradients = sum(each.numel() * each.element_size() for each in given[:2])
    return (resident()[1] - before - gradients) / 1e6


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        print(measure_held(sys.argv[2], [int(size) for size in sys.argv[3:]]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=3072)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sizes = [options.rows, options.vocabulary, options.width]
    losses, absent = {}, []
    for name, make in WAYS.items():
        try:
            losses[name] = make()
        except ImportError as error:
            absent.append(f"{name}: absent ({error})")
    given = inputs_of(*sizes)
    values = {name: once(loss, given)[1] for name, loss in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(options.rounds):
        for name, loss in losses.items():
            times[name].append(once(loss, given)[0])
    base = statistics.median(times["plain PyTorch"])
    lines: list[Line] = []
    for name, found in times.items():
        middle = statistics.median(found)
        cells = [f"{1000 * middle:.0f}", f"{base / middle:.2f}", f"{held(name, sizes):.0f}"]
        lines.append([name, *cells, f"{values[name]:.6f}"])
    head = ["CE and JSD", "ms", "times plain's speed", "MB beyond gradients", "loss"]
    print("\n".join([*text_table(head, lines).splitlines(), *absent]))


if __name__ == "__main__":
    main()
