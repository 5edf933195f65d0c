"""Faults drawn at random, and what must hold after each.

    python -m tests.faults.suite [--minutes 60] [--seed 1]

A case is a verb in a process of its own, over a copy of small runs, their corpus, a teacher's cache
and a demo, and one fault: a file or text damaged or replaced, before or meanwhile, a kill at a
random moment, pauses, a disk that fills, too few open files, streams, folders or a clock that are
otherwise than they should be, a config that means harm, a file or folder without rights, or the
same verb twice at once. It must end in time, by a status of its own, with one line where it fails
and no traceback. What ends with 0 writes and prints what it does without the fault; after a kill
the same command does the work, and leaves nothing temporary. The table of what was tried is
printed, with the seed and number of each case that failed.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.kinds import CONFIGURED, Kinds
from tests.faults.place import Place


@dataclass
class Tried:
    """Cases by verb and fault, and those in which something did not hold."""

    seed: int
    cases: collections.Counter = field(default_factory=collections.Counter)
    found: collections.Counter = field(default_factory=collections.Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, number: int, verb: str, fault: str, trouble: str) -> None:
        self.cases[verb, fault] += 1
        if trouble:
            self.found[verb, fault] += 1
            finding = f"seed {self.seed} case {number}: {verb}, {fault}: {trouble}"
            self.findings.append(finding)
            print(finding, file=sys.stderr, flush=True)

    def table(self) -> str:
        """Cases of each verb by kind; where something was found, how often after a slash."""
        verbs, faults = (sorted({key[i] for key in self.cases}) for i in (0, 1))
        lines = [f"| verb | {' | '.join(faults)} |", "| --- |" + " ---: |" * len(faults)]
        for verb in verbs:
            cells = [f"{self.cases[verb, fault]}{self._found(verb, fault)}" for fault in faults]
            lines.append(f"| {verb} | {' | '.join(cells)} |")
        sums = [str(sum(self.cases[verb, fault] for verb in verbs)) for fault in faults]
        lines.append(f"| all | {' | '.join(sums)} |")
        total = f"{sum(self.cases.values())} cases, seed {self.seed}"
        return "\n".join([*lines, "", f"{total}; findings: {len(self.findings)}", *self.findings])

    def _found(self, verb: str, fault: str) -> str:
        return f" / {self.found[verb, fault]}" if self.found[verb, fault] else ""


class Suite:
    """Cases, each a function of the seed and its number."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.place, self.tried = Place(folder), Tried(seed)
        kinds = Kinds(self.place)
        self.faults = [
            kinds.damaged, kinds.damaged, kinds.changed_meanwhile, kinds.killed, kinds.killed,
            kinds.paused, kinds.full_disk, kinds.few_files, kinds.surrounded, kinds.forbidden,
            kinds.hostile, kinds.twice,
        ]  # fmt: skip

    def case(self, number: int) -> None:
        draw = random.Random(f"{self.tried.seed} {number}")
        fault = draw.choice(self.faults)
        hostile = fault.__name__ == Kinds.hostile.__name__
        verb = draw.choice(CONFIGURED if hostile else list(self.place.verbs))
        self.place.begin(verb)
        self.tried.add(number, verb, fault.__name__, fault(verb, draw))


def run(folder: Path, seconds: float, seed: int, only: int | None = None) -> Tried:
    """As many cases as there is time for, at least one; or only one."""
    suite = Suite(folder, seed)
    until, number = time.monotonic() + seconds, 0
    if only is not None:
        suite.case(only)
        return suite.tried
    while number == 0 or time.monotonic() < until:
        suite.case(number)
        number += 1
    return suite.tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--case", type=int, help="of a seed, to meet again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop").mkdir()
        tried = run(Path(folder), arguments.minutes * 60, arguments.seed, arguments.case)
    print(tried.table())
    sys.exit(bool(tried.findings))


if __name__ == "__main__":
    main()
