"""Every configuration that the tables of `fastkd_kernels` can choose, executed as compiled."""

import pytest

from tests.compiled.process import Machine

PARTS = {"tokens": 3, "attention": 6}
# Entries of the tables that no call launches, and why.
MAPS = "the gradient of float16 maps is written in float16, not in the scratch's float32"
UNREACHED: dict[str, dict[str, str]] = {
    "tokens": {},
    "attention": {
        f"mix_gradient_bwd [fp16 {heads}→32 x{keys} maps{many}]": MAPS
        for heads in ("16", "16+")
        for keys in (32, 64)
        for many in ("", " many")
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
