"""Whether the machine notices what it is there for.

`python -m tests.compiled.mutate [--target 90] [CASE ...]` takes away, one at a time, each barrier
and each wait of the compiled kernels that a case runs, and tells whether a finding or another
result betrays it, and of what kind a silence is.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tests.compiled.cases.case import Case
from tests.compiled.executor.launch import Schedule
from tests.compiled.executor.program import SPECIAL, Program
from tests.compiled.executor.session import Session, installed

TAKEN = {
    SPECIAL["bar"]: "barrier",
    SPECIAL["cp_wait"]: "wait for copies",
    SPECIAL["wgmma_wait"]: "wait for products",
    SPECIAL["warpbar"]: "warp barrier",
}
MEMORY = {SPECIAL[name] for name in ("ld", "st", "cp_async", "ldmatrix", "stmatrix", "wgmma")}
CASES = (
    "dense V 37, all fp32",
    "row rows together bf16",
    "map rows together bf16",
    "map pairs 70x70 D64 bf16",
    "map 150 keys, 33 bf16",
    "row long rows together, 33 fp32",
    "listed V 37, drop rank fp32",
)
# Of barriers alone, over CASES: what the machine has to notice at least.
LEAST_NOTICED = 190 / 217


@dataclass(frozen=True)
class Mutation:
    """What became of a kernel without one of its instructions."""

    case: str
    kernel: str
    taken: str
    place: int
    noticed: str  # "finding", "result", or "" for neither
    why: str  # of silence


def mutations(case: Case, target: int = 80) -> Iterator[Mutation]:
    session = Session(Schedule(7, late=True), target)
    first, known = _results(case, session), _told(session)
    if session.faults:
        raise RuntimeError(f"{case.label} has faults as it is: {session.faults[0]}")
    for run in list(session.runs.values()):
        program, counts = run.kernel.program, run.counts.copy()
        for place in np.flatnonzero(counts).tolist():
            code = int(program.instructions[place, 0])
            if code not in TAKEN:
                continue
            program.instructions[place, 0] = SPECIAL["nop"]
            try:
                values = _results(case, session)
            finally:
                program.instructions[place, 0] = code
            noticed = "finding" if _told(session) - known else ""
            if not noticed and not _same(first, values):
                noticed = "result"
            why = "" if noticed else silence(program, counts, place)
            yield Mutation(case.label, program.name, TAKEN[code], place, noticed, why)


def _results(case: Case, session: Session) -> list[Tensor]:
    session.clear()
    prepared = case.prepare()
    with prepared.around(), installed(session):
        return prepared.run("triton")


def _told(session: Session) -> set[tuple[str, ...]]:
    """What is found, also between lanes of a warp: harmless where they run in step."""
    return {(one.kernel, one.kind, one.instruction, one.other) for one in session.findings}


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    from tests.compiled.check import same_bits

    return same_bits(first, second)


def silence(program: Program, counts: np.ndarray, place: int) -> str:
    """Why nothing betrays that an instruction is missing.

    Races are found by epochs between barriers, whatever the schedule. So a silence proves that
    this call, on these shapes, had no two warps at the same bytes that this barrier alone kept
    apart; this tells of what kind it is.
    """
    code = int(program.instructions[place, 0])
    if code == SPECIAL["warpbar"]:
        return "no lane touched across it what another had"
    if code in (SPECIAL["cp_wait"], SPECIAL["wgmma_wait"]):
        return "another wait follows before what it waits for is used"
    before = _next_to(program, counts, place, -1)
    after = _next_to(program, counts, place, 1)
    if before == "barrier" or after == "barrier":
        return "another barrier next to it, and no access to memory between"
    if before == "end" or after == "end":
        return "no access to shared memory on one side of it"
    if counts[place] == counts[0]:
        return "orders the turns of a loop that ran once"
    return "no warp touched across it what another had"


def _next_to(program: Program, counts: np.ndarray, place: int, step: int) -> str:
    """What comes first that way in the text: a "barrier", "memory", or the "end"."""
    at = place + step
    while 0 <= at < len(counts):
        code = int(program.instructions[at, 0])
        if counts[at] and code == SPECIAL["bar"]:
            return "barrier"
        if counts[at] and code in MEMORY and ".global" not in program.text[at]:
            return "memory"
        at += step
    return "end"


def table(found: list[Mutation]) -> str:
    lines = ["| case | kernel | taken away | places | finding | result only | silent |"]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        groups.setdefault((one.case, one.kernel, one.taken), []).append(one.noticed)
    for key, noticed in groups.items():
        amounts = (len(noticed), *(noticed.count(kind) for kind in ("finding", "result", "")))
        lines.append("| " + " | ".join([*key, *map(str, amounts)]) + " |")
    return "\n".join(lines)


def run(labels: list[str], target: int = 80) -> list[Mutation]:
    from tests.compiled.check import all_cases

    known = {case.label: case for case in all_cases()}
    return [found for label in labels for found in mutations(known[label], target)]


def report(labels: list[str], target: int = 80) -> list[dict[str, object]]:
    """As the worker returns it."""
    return [vars(found) for found in run(labels, target)]


def main() -> None:
    from tests.compiled import device

    parser = argparse.ArgumentParser(prog="python -m tests.compiled.mutate", description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--target", type=int, default=80)
    options = parser.parse_args()
    device.prepare()
    found = run(options.cases, options.target)
    print(table(found))
    for one in found:
        if not one.noticed:
            print(f"{one.case}: {one.kernel} at {one.place}, {one.taken}: {one.why}")


if __name__ == "__main__":
    main()
