"""Three trained runs, two of them of one method."""

import pytest

from tests.cli.conftest import taught  # noqa: F401


@pytest.fixture(scope="session")
def runs(taught):  # noqa: F811
    """Paths of `alone` with the seeds 1 and 2, and of `a2d`; tests must not change them."""
    teacher = {"run": str(taught.folder / "teacher")}
    losses = [{"name": "cross_entropy"}, {"name": "a2d", "weight": {"value": 1, "ramp": 3}}]
    paths = []
    for name, changes in (
        ("alone-1", {}),
        ("alone-2", {"training": {"seed": 2}}),
        ("a2d", {"teacher": teacher, "losses": losses}),
    ):
        config = taught.config(f"compared-{name}", **changes)
        assert taught.run("train", config) == 0
        paths.append(str(taught.folder / f"compared-{name}"))
    return paths
