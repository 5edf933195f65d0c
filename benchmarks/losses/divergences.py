"""Cross-entropy and a divergence from hidden states on this machine, beside peers.

    python -m benchmarks.losses.divergences [--divergence jsd …] [--rows 256 3072]
        [--ways fastkd …] [--write CSV]

Each of a size's ways takes its turn on the same tensors: the median time of a forward and a
backward pass, and the memory that a process of its own holds at most beyond inputs and gradients.
Peers that are not installed are named as absent; those that do not have a divergence are left out.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import linear_token_distillation_loss
from fastkd.functional.calls import BETAS, DIVERGENCES
from fastkd.memory.resident import child_environment, resident, restart_peak
from fastkd.tables import Line, text_table

# Of JSD as the peers have it: what they call β = 0 and 1 is no limit of it.
PEERS = {"kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
PLAIN = "plain PyTorch"
Loss = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Result:
    """speed: times plain PyTorch's; held: MB beyond inputs and gradients"""

    divergence: str
    rows: int
    way: str
    milliseconds: float
    speed: float
    held: float
    loss: float


def inputs_of(rows: int, vocabulary: int, width: int) -> list[Tensor]:
    """Student's states and weight, the teacher's, targets."""
    torch.manual_seed(0)
    sides = [torch.randn(size, width) / width**0.5 for size in (rows, vocabulary) * 2]
    learned = [4 * each.requires_grad_() for each in sides[:2]]
    constants = [(4 * each).detach() for each in sides[2:]]
    return [*(x.detach().requires_grad_() for x in learned), *constants,
            torch.randint(vocabulary, (rows,))]  # fmt: skip


def fastkd(form: str) -> Loss:
    def loss(given: list[Tensor]) -> Tensor:
        return linear_token_distillation_loss(
            *given, ce_weight=0.5, kd_weight=0.5, divergence=form, reduction="mean"
        ).loss

    return loss


def plain(form: str) -> Loss:
    """As one writes it of log-probabilities."""
    beta = BETAS.get(form, 0.0)
    shares = torch.tensor([beta, 1 - beta]).log()

    def kl(of: Tensor, against: Tensor) -> Tensor:
        return F.kl_div(against, of, reduction="batchmean", log_target=True)

    def mixture(log_a: Tensor, log_b: Tensor) -> Tensor:
        return torch.logaddexp(log_a + shares[0], log_b + shares[1])

    def jsd(log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = mixture(log_q, log_p)
        return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)

    divergences: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "kl": lambda log_q, log_p: kl(log_q, log_p),
        "reverse_kl": lambda log_q, log_p: kl(log_p, log_q),
        "jsd": jsd,
        "skew_kl": lambda log_q, log_p: kl(log_q, mixture(log_q, log_p)),
        "skew_reverse_kl": lambda log_q, log_p: kl(log_p, mixture(log_p, log_q)),
        "tvd": lambda log_q, log_p: 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1).mean(),
    }
    chosen = divergences[form]

    def loss(given: list[Tensor]) -> Tensor:
        student, weight, teacher, teacher_weight, target = given
        log_p = F.linear(student, weight).log_softmax(-1)
        log_q = F.linear(teacher, teacher_weight).log_softmax(-1)
        return 0.5 * F.nll_loss(log_p, target) + 0.5 * chosen(log_q, log_p)

    return loss


def liger(form: str) -> Loss:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.5, 0.5, beta=PEERS[form], compiled=False)

    def of(given: list[Tensor]) -> Tensor:
        value: Tensor = loss(*given)
        return value

    return of


def trl(form: str) -> Loss:
    from trl.experimental.gkd import GKDTrainer

    peer: Callable[..., Tensor] = GKDTrainer.generalized_jsd_loss

    def loss(given: list[Tensor]) -> Tensor:
        student, weight, teacher, teacher_weight, target = given
        ours, theirs = F.linear(student, weight), F.linear(teacher, teacher_weight)
        divergence: Tensor = peer(ours, theirs, beta=PEERS[form])
        value: Tensor = 0.5 * F.cross_entropy(ours, target) + 0.5 * divergence
        return value

    return loss


def compiled(form: str) -> Loss:
    torch.compiler.reset()  # it gives up on what it has compiled eight times
    return torch.compile(plain(form))


WAYS: dict[str, Callable[[str], Loss]] = {
    PLAIN: plain,
    "fastkd": fastkd,
    "torch.compile": compiled,
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


def held(way: str, form: str, sizes: list[int]) -> float:
    """MB at most beyond inputs and gradients, of a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--memory", way, form, *map(str, sizes)]
    environment = child_environment(torch.get_num_threads())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_held(way: str, form: str, sizes: list[int]) -> float:
    loss, given = WAYS[way](form), inputs_of(*sizes)
    once(loss, given)
    for each in given[:2]:
        each.grad = None
    restart_peak()
    before = resident()[0]
    once(loss, given)
    gradients = sum(each.numel() * each.element_size() for each in given[:2])
    return (resident()[1] - before - gradients) / 1e6


def measured(
    ways: list[str], form: str, sizes: list[int], rounds: int, absent: set[str]
) -> Iterator[Result]:
    losses: dict[str, Loss] = {}
    for name in ways:
        if name in ("Liger", "TRL") and form not in PEERS:
            continue
        try:
            losses[name] = WAYS[name](form)
        except ImportError as error:
            absent.add(f"{name}: absent ({error})")
    given = inputs_of(*sizes)
    values = {name: once(loss, given)[1] for name, loss in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            times[name].append(once(loss, given)[0])
    base = statistics.median(times[PLAIN])
    for name, found in times.items():
        middle = statistics.median(found)
        memory = held(name, form, sizes)
        yield Result(form, sizes[0], name, 1000 * middle, base / middle, memory, values[name])


def write(found: list[Result], file: Path) -> None:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [x.name for x in fields(Result)], lineterminator="\n")
        table.writeheader()
        for each in found:
            rounded = {
                k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(each).items()
            }
            table.writerow(rounded)


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        way, form, *sizes = sys.argv[2:]
        print(measure_held(way, form, [int(size) for size in sizes]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--divergence", nargs="+", choices=DIVERGENCES, default=["jsd"])
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 3072])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="beside plain")
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="CSV file of the table")
    options = parser.parse_args()
    found: list[Result] = []
    absent: set[str] = set()
    for form in options.divergence:
        for rows in options.rows:
            shape: list[int] = [rows, options.vocabulary, options.width]
            ways = [name for name in WAYS if name == PLAIN or name in options.ways]
            for each in measured(ways, form, shape, options.rounds, absent):
                print(
                    f"{form}, {rows} rows, {each.way}: {each.milliseconds:.0f} ms", file=sys.stderr
                )
                found.append(each)
            if options.write:
                write(found, options.write)
    lines: list[Line] = [
        [x.divergence, str(x.rows), x.way, f"{x.milliseconds:.0f}", f"{x.speed:.2f}",
         f"{x.held:.0f}", f"{x.loss:.6f}"] for x in found
    ]  # fmt: skip
    head = ["CE and", "rows", "", "ms", "times plain's speed", "MB beyond gradients", "loss"]
    print("\n".join([*text_table(head, lines).splitlines(), *sorted(absent)]))


if __name__ == "__main__":
    main()
