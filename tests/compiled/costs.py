"""What calls cost on a GPU, counted without one: launches, instructions and bytes.

`python -m tests.compiled.costs [--target 90] [--only TEXT] [--write FILE]` executes calls of the
losses and prints a row for each kernel: launches, instructions that a thread issues for a unit of
work, by kind, and bytes of global memory for it, as issued (caches may save some). The unit is a
cell of a student map of an alignment, and a logit of a token loss. Instructions are those of PTX:
ptxas removes most moves and joins some others. Kernels are executed unwatched, in bfloat16. FILE is
the table that `fastkd bench --predict` reads, `fastkd/bench/kernel_costs.csv`.
"""

import argparse
import csv
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.compiled.executor.launch import Schedule
from tests.compiled.executor.program import LANES
from tests.compiled.executor.session import KernelRun, Session, installed

KINDS = {
    "matrix": ("mma.", "wgmma."),
    "special": ("ex2.", "lg2.", "rcp.", "sqrt.", "rsqrt.", "div.full", "tanh."),
    "float": ("fma.", "add.f32", "sub.f32", "mul.f32", "min.f32", "max.f32", "neg.f32", "abs.f32"),
    "global": ("ld.global", "st.global", "cp.async"),
    "shared": ("ld.shared", "st.shared", "ldmatrix", "stmatrix"),
    "shuffle": ("shfl.", "redux."),
    "barrier": ("bar.", "fence."),
    "branch": ("bra", "ret"),
    "moves": ("mov.", "selp.", "cvt."),
}
OTHER = "integer"


@dataclass(frozen=True)
class Call:
    """units: cells times student maps, or logits"""

    name: str
    units: int
    run: Callable[[], None]


@dataclass(frozen=True)
class Cost:
    """Of one kernel in one call; instructions and bytes by unit of work."""

    call: str
    kernel: str
    launches: int
    instructions: dict[str, float]
    read: float
    written: float
    shared: float

    @property
    def total(self) -> float:
        return sum(self.instructions.values())


def by_kind(run: KernelRun) -> Counter[str]:
    """Instructions run by warps."""
    found: Counter[str] = Counter()
    for text, count in zip(run.kernel.program.text, run.counts.tolist(), strict=True):
        words = text.split()
        opcode = words[int(words[0].startswith("@"))]
        kind = next((kind for kind, starts in KINDS.items() if opcode.startswith(starts)), OTHER)
        found[kind] += int(count)
    return found


def costs(call: Call, target: int) -> Iterator[Cost]:
    session = Session(Schedule(0, check=False), target)
    with installed(session):
        call.run()
    for run in session.runs.values():
        found = {kind: LANES * n / call.units for kind, n in by_kind(run).most_common()}
        read, written, *shared = (run.traffic / call.units).tolist()
        name = run.kernel.program.name
        yield Cost(call.name, name, run.launches, found, read, written, sum(shared))


def calls() -> Iterator[Call]:
    yield from _alignments()
    yield from _tokens()


def _alignments() -> Iterator[Call]:
    from fastkd import alignment_loss_from_maps, attention_alignment_loss
    from tests.compiled.cases.alignment import NORMALIZATIONS, in_model_order
    from tests.kernels.attention_compare import attention, maps

    heads, queries, size = 12, 64, 64
    common = {"batch": 1, "students": heads, "queries": queries, "dtype": torch.bfloat16}
    sizes = {"student_size": size, "teacher_size": size}
    # Rows of one block and of several; as many teacher maps, and twice as many.
    for keys, teachers, form in itertools.product((64, 192), (12, 24), NORMALIZATIONS):
        shape = common | {"keys": keys, "teachers": teachers}
        units = queries * keys * heads

        def weighted(form: str = form, shape: dict = shape) -> None:
            made = attention(**shape, **sizes)
            _learn(attention_alignment_loss, in_model_order(made), (0, 1, 4), form)

        name = f"{form} {heads}→{teachers} {queries}x{keys}"
        yield Call(f"{name} D{size}", units, weighted)
        if teachers != heads:
            continue

        def pairs(form: str = form, shape: dict = shape) -> None:
            made = attention(**shape, **sizes, weighted=False)
            _learn(attention_alignment_loss, in_model_order(made), (0, 1, 4), form)

        def given(form: str = form, shape: dict = shape) -> None:
            _learn(alignment_loss_from_maps, maps(**shape), (0, 2), form)

        yield Call(f"{name} D{size}, head against head", units, pairs)
        yield Call(f"{name} from maps", units, given)


def _learn(loss: Callable[..., Tensor], inputs: list, learned: tuple[int, ...], form: str) -> None:
    for place in learned:
        if inputs[place] is not None:
            inputs[place].requires_grad_()
    loss(*inputs, normalization=form, backend="triton").backward()


def _tokens() -> Iterator[Call]:
    from fastkd_kernels.tokens.settings import FORMS

    from fastkd import token_distillation_loss

    rows, vocabulary = 2, 32768
    taught: dict[str, Any] = {"ce_weight": 1.0, "kd_weight": 1.0}
    for name, options in {
        "CE": {"ce_weight": 1.0, "kd_weight": 0.0},
        "CE + KD": {"ce_weight": 1.0, "kd_weight": 1.0},
        "CE + KD + rank": {"ce_weight": 1.0, "kd_weight": 1.0, "rank_weight": 1.0, "top_k": 5},
        **{f"CE + {form}": taught | {"divergence": form} for form in FORMS[1:]},
        "CE + entropy": {"ce_weight": 1.0, "kd_weight": 0.0, "entropy_weight": 1.0},
        "CE + KD + entropy": taught | {"entropy_weight": 1.0},
        "CE + jsd near 0": taught | {"divergence": "jsd", "beta": 1e-3},
        "CE + KD, capped": taught | {"student_soft_cap": 30.0, "teacher_soft_cap": 30.0},
        "CE + KD, fewer compared": taught | {"vocabulary": 32000},
    }.items():

        def dense(options: dict[str, Any] = options) -> None:
            draw = torch.Generator().manual_seed(1)
            student, teacher = (
                (3 * torch.randn(rows, vocabulary, generator=draw)).bfloat16() for _ in range(2)
            )
            student.requires_grad_()
            found = token_distillation_loss(
                student,
                teacher if options["kd_weight"] else None,
                torch.tensor([1, 2]),
                label_smoothing=0.1,
                backend="triton",
                **options,
            )
            found.loss.backward()

        yield Call(f"dense V {vocabulary}, {name}", rows * vocabulary, dense)


def table(found: list[Cost]) -> str:
    kinds = [*KINDS, OTHER]
    head = ["call", "kernel", "launches", "instructions", *kinds]
    head += ["B read", "B written", "B shared"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for cost in found:
        cells = [cost.call, cost.kernel, str(cost.launches), f"{cost.total:.1f}"]
        cells += [f"{cost.instructions.get(kind, 0):.1f}" for kind in kinds]
        cells += [f"{amount:.2f}" for amount in (cost.read, cost.written, cost.shared)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def totals(found: list[Cost]) -> str:
    lines = ["| call | launches | instructions | B read | B written |", "|---|---:|---:|---:|---:|"]
    groups: dict[str, list[Cost]] = {}
    for cost in found:
        groups.setdefault(cost.call, []).append(cost)
    for name, costs in groups.items():
        amounts = [sum(x) for x in zip(*((c.total, c.read, c.written) for c in costs), strict=True)]
        launches = sum(cost.launches for cost in costs)
        lines.append(f"| {name} | {launches} | " + " | ".join(f"{x:.1f}" for x in amounts) + " |")
    return "\n".join(lines)


def write(found: list[Cost], file: Path) -> None:
    """By call and kernel: instructions, bytes read and bytes written for a unit of work."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("call", "kernel", "instructions", "read", "written"))
        for cost in found:
            figures = (cost.total, cost.read, cost.written)
            writer.writerow((cost.call, cost.kernel, *(f"{figure:.3f}" for figure in figures)))


def report(only: str, target: int) -> list[dict[str, object]]:
    """As the worker returns it."""
    wanted = [call for call in calls() if only in call.name]
    return [asdict(cost) for call in wanted for cost in costs(call, target)]


def main() -> None:
    from tests.compiled import device

    parser = argparse.ArgumentParser(prog="python -m tests.compiled.costs", description=__doc__)
    parser.add_argument("--target", type=int, default=90, help="compute capability: 80 or 90")
    parser.add_argument("--only", default="", help="calls whose name holds this")
    parser.add_argument("--write", type=Path, help="CSV file")
    options = parser.parse_args()
    device.prepare()
    found = []
    for call in calls():
        if options.only in call.name:
            found += list(costs(call, options.target))
    if options.write:
        write(found, options.write)
    print(table(found), totals(found), sep="\n\n")


if __name__ == "__main__":
    main()
