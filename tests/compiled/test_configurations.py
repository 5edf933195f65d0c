"""Every configuration that the tables of `fastkd_kernels` can choose, executed as compiled."""

import pytest

from tests.compiled.process import Machine

PARTS = {"tokens": 3, "attention": 6}
# Entries of the tables that no call launches, and why.
KEPT = "gradients of a graph that is kept; the calls drawn free theirs"
UNREACHED: dict[str, dict[str, str]] = {
    "tokens": {},
    "attention": {
        "scale_gradients_bwd [bf16]": KEPT,
        "scale_gradients_bwd [fp32]": KEPT,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("family", PARTS)
def test_every_configuration_is_reached_by_some_call(machine: Machine, family: str) -> None:
    lost = machine.call("tests.compiled.drawn:unreached", family=family)
    assert set(lost) == set(UNREACHED[family])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "part"), [(family, part) for family, parts in PARTS.items() for part in range(parts)]
)
def test_calls_drawn_from_the_tables(machine: Machine, family: str, part: int) -> None:
    asked = {"family": family, "part": part, "parts": PARTS[family]}
    complaints = machine.call("tests.compiled.drawn:complaints", **asked)
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)
