"""The process that compiles and executes kernels, started when a test first asks for it.

The slow cases have a time, FASTKD_COMPILED_MINUTES of each worker (10; 0: no end), and are tried in
an order that changes from day to day (FASTKD_COMPILED_SEED), so that all have their turn.
"""

import datetime
import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.compiled.executor.library import available
from tests.compiled.process import Machine

NEEDS = "needs g++, which builds the machine that executes compiled kernels"
MINUTES = float(os.environ.get("FASTKD_COMPILED_MINUTES", "10"))
SEED = os.environ.get("FASTKD_COMPILED_SEED", datetime.date.today().isoformat())


@pytest.fixture(scope="session")
def compiler() -> None:
    if not available():
        pytest.skip(NEEDS)


@pytest.fixture(scope="session")
def machine(compiler: None) -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones of this folder in the day's order, among themselves."""
    places = [place for place, item in enumerate(items) if _slow(item)]
    shuffled = [items[place] for place in places]
    random.Random(SEED).shuffle(shuffled)
    for place, item in zip(places, shuffled, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def spent() -> dict[str, float]:
    return {"seconds": 0.0}


@pytest.fixture(autouse=True)
def time_left(request: pytest.FixtureRequest, spent: dict[str, float]) -> Iterator[None]:
    if not _slow(request.node):
        yield
        return
    if MINUTES and spent["seconds"] > 60 * MINUTES:
        pytest.skip(f"the time of slow compiled cases is over: {MINUTES:g} minutes, order {SEED}")
    begin = time.monotonic()
    yield
    spent["seconds"] += time.monotonic() - begin


def _slow(item: pytest.Item) -> bool:
    here = os.path.dirname(__file__) + os.sep
    return str(item.path).startswith(here) and item.get_closest_marker("slow") is not None
