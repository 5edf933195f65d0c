"""The process that compiles and executes kernels, started when a test first asks for it."""

from collections.abc import Iterator

import pytest

from tests.compiled.executor.library import available
from tests.compiled.process import Machine

NEEDS = "needs g++, which builds the machine that executes compiled kernels"


@pytest.fixture(scope="session")
def compiler() -> None:
    if not available():
        pytest.skip(NEEDS)


@pytest.fixture(scope="session")
def machine(compiler: None) -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()
