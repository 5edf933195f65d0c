"""The machine notices when a barrier, or a wait, is taken away from a compiled kernel."""

from typing import Any

import pytest

from tests.compiled import mutate
from tests.compiled.process import Machine

Found = list[dict[str, Any]]


def mutated(machine: Machine, labels: list[str], target: int = 80) -> Found:
    found: Found = machine.call("tests.compiled.mutate:report", labels=labels, target=target)
    return found


def noticed(found: Found, taken: str) -> tuple[int, int]:
    """(how many are noticed, of how many)"""
    of_kind = [one for one in found if one["taken"] == taken]
    return sum(bool(one["noticed"]) for one in of_kind), len(of_kind)


def test_missing_barriers_of_one_kernel(machine: Machine) -> None:
    found = mutated(machine, ["dense V 37, all fp32"])
    told, places = noticed(found, "barrier")
    assert places and told >= mutate.LEAST_NOTICED * places
    assert all(one["noticed"] or one["why"] for one in found)


@pytest.mark.slow
def test_missing_barriers_and_waits(machine: Machine) -> None:
    found = mutated(machine, list(mutate.CASES))
    told, places = noticed(found, "barrier")
    assert places >= 100 and told >= mutate.LEAST_NOTICED * places
    told, places = noticed(found, "warp barrier")
    assert places and told == places
    assert all(one["noticed"] or one["why"] for one in found)


@pytest.mark.slow
def test_missing_waits_for_products_of_warp_groups(machine: Machine) -> None:
    found = mutated(machine, ["row pairs 70x70 D64 bf16"], target=90)
    told, places = noticed(found, "wait for products")
    assert places and told == places
