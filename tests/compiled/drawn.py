"""Calls drawn from the tables of configurations, so that each is executed.

`fastkd_kernels.offline` lists kernels with everything that is compiled into them. For each entry a
call of the losses is searched that launches it: from some start, one property of the call at a
time is changed, as long as the launch comes closer to the entry. No kernel is run meanwhile, only
what each launch would compile is looked at. A new kernel or configuration is found this way or
named as one that no call reaches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from fastkd_kernels import offline

from tests.compiled.cases import space
from tests.compiled.check import SCHEDULES, check
from tests.compiled.executor.session import Session, launches_to

Arguments = dict[str, object]
Launches = tuple[tuple[str, tuple[tuple[str, object], ...]], ...]


@dataclass(frozen=True)
class Entry:
    """What tells an entry of a table from its kernel's others."""

    kernel: str
    label: str
    wanted: tuple[tuple[str, object], ...]

    def missing(self, launches: Launches) -> float:
        """Properties in which the closest launch differs; infinite without a launch."""
        distances = [
            sum(_differ(dict(found).get(name), value) for name, value in self.wanted)
            for kernel, found in launches
            if kernel == self.kernel
        ]
        return min(distances, default=float("inf"))


def _differ(found: object, wanted: object) -> bool:
    """Pointers that are given or not are no configuration, their types are."""
    pointers = [str(value).startswith("*") for value in (found, wanted)]
    if any(pointers) and None in (found, wanted):
        return False
    return found != wanted


def entries(family: str) -> list[Entry]:
    """Every entry of a family's table; what no entry varies is left to the cases."""
    cases = list(offline.all_cases(family))
    properties = [_normal(case.arguments, case.num_warps) for case in cases]
    values: dict[tuple[str, str], set[str]] = {}
    for case, found in zip(cases, properties, strict=True):
        for name, value in found.items():
            values.setdefault((case.kernel.__name__, name), set()).add(repr(value))
    return [
        Entry(
            case.kernel.__name__,
            case.name,
            tuple(
                (name, value)
                for name, value in found.items()
                if len(values[case.kernel.__name__, name]) > 1
            ),
        )
        for case, found in zip(cases, properties, strict=True)
    ]


def _normal(arguments: Mapping[str, object], num_warps: int) -> Arguments:
    """Sizes of 64 bits belong to tensors larger than a test can make: taken as of 32."""
    found = {name: "i32" if value == "i64" else value for name, value in arguments.items()}
    return found | {"num_warps": num_warps}


class Space:
    """The calls of a family: a point has one value for each property."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.properties = space.PROPERTIES[family]
        self.launches = lru_cache(maxsize=None)(self._launches)

    def _launches(self, point: tuple[object, ...]) -> Launches:
        """What a call would compile; () where there is no such call."""
        session, seen = Session(), []

        def note(function: Any, args: Any, grid: Any, options: Any) -> None:
            wanted = session.specialised(function, args, options)
            found = _normal(wanted.arguments, wanted.options["num_warps"])
            seen.append((function.__name__, tuple(found.items())))

        case = self.case(point)
        if case is None:
            return ()
        prepared = case.prepare()
        with prepared.around(), launches_to(note):
            prepared.run("triton")
        return tuple(seen)

    def case(self, point: tuple[object, ...]):
        return space.case(self.family, dict(zip(self.properties, point, strict=True)))

    def closest(self, entry: Entry, start: tuple[object, ...]) -> tuple[tuple[object, ...], float]:
        """Where changing one property brings the launches no closer to the entry."""
        point, left, before = start, entry.missing(self.launches(start)), None
        while left and left != before:
            before = left
            for index, values in enumerate(self.properties.values()):
                for value in values:
                    other = (*point[:index], value, *point[index + 1 :])
                    missing = entry.missing(self.launches(other))
                    if missing < left:
                        point, left = other, missing
                if not left:
                    return point, left
        return point, left

    def starts(self) -> Iterator[tuple[object, ...]]:
        for chosen in space.starts(self.family):
            first = {name: values[0] for name, values in self.properties.items()}
            yield tuple((first | chosen).values())


@cache
def draw(family: str) -> tuple[list[tuple[object, ...]], list[Entry]]:
    """(points whose calls reach every entry that any does, entries that none reaches)"""
    calls, points, lost = Space(family), [], []
    open_entries = entries(family)
    while open_entries:
        entry = open_entries[0]
        for start in calls.starts():
            point, missing = calls.closest(entry, start)
            if not missing:
                points.append(point)
                reached = calls.launches(point)
                open_entries = [e for e in open_entries if e.missing(reached)]
                break
        else:
            lost.append(open_entries.pop(0))
    return points, lost


def unreached(family: str) -> list[str]:
    """Labels of entries that no call reaches."""
    return [entry.label for entry in draw(family)[1]]


def complaints(family: str, part: int, parts: int) -> list[str]:
    """Executes one of so many parts of a family's drawn calls under every schedule."""
    session, calls, found = Session(), Space(family), []
    points, _ = draw(family)
    for point in points[part::parts]:
        case = calls.case(point)
        assert case is not None
        verdict = check(case, session, SCHEDULES)
        found += [f"{case.label}: {complaint}" for complaint in verdict.complaints()]
    return found
