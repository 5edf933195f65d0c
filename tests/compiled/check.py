"""Whether a case is right, equal under every schedule, free of findings, within the chip."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.compiled.cases import alignment, tokens
from tests.compiled.cases.case import Case
from tests.compiled.executor.launch import Schedule
from tests.compiled.executor.session import Session, installed

IN_TIME, LATE = Schedule(1), Schedule(2, late=True)
ERRING = Schedule(99, late=True, perturb=1)  # approximate instructions err as documented
QUICK = (Schedule(1, late=True), ERRING)
MOST_FAULTS = 5  # that are written out
SCHEDULES = (IN_TIME, LATE, Schedule(3), ERRING)


@dataclass
class Verdict:
    """ratio: the largest error over its bound; same: whether schedules gave equal bits."""

    ratio: float = 0.0
    same: bool = True
    faults: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        found = list(self.faults[:MOST_FAULTS])
        if len(self.faults) > MOST_FAULTS:
            found.append(f"and {len(self.faults) - MOST_FAULTS} more")
        if not self.ratio <= 1:
            found.append(f"errors up to {self.ratio:.3g} times the bound")
        if not self.same:
            found.append("other bits under another schedule")
        return found

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def all_cases() -> Iterator[Case]:
    yield from tokens.cases()
    yield from alignment.cases()


def check(case: Case, session: Session, schedules: Sequence[Schedule]) -> Verdict:
    """Runs a case under each schedule; one that perturbs may have bits of its own."""
    prepared = case.prepare()
    truth, plain = prepared.run("truth"), prepared.run("plain")
    verdict, first = Verdict(), None
    for schedule in schedules:
        session.schedule = schedule
        session.clear()
        with prepared.around(), installed(session):
            ours = prepared.run("triton")
        verdict.faults += [*sorted(session.resources), *map(str, session.faults)]
        verdict.ratio = max(verdict.ratio, prepared.ratio(ours, plain, truth))
        if schedule.perturb:
            continue
        first = first or ours
        verdict.same &= same_bits(first, ours)
    return verdict


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    """NaN equals NaN."""
    return all(
        torch.equal(a.nan_to_num(7e37), b.nan_to_num(7e37))
        for a, b in zip(first, second, strict=True)
    )
