"""One colour for each method, provider and phase, in every picture (Okabe and Ito's, and a few)."""

from collections.abc import Sequence

# What a model is trained by; of several losses the first of these in `PRECEDENCE` counts.
METHODS = {
    "teacher": "#000000",
    "alone": "#8c8c8c",
    "sequence KD": "#56b4e9",
    "word KD": "#0072b2",
    "TIE-KD": "#e69f00",
    "A2D": "#d55e00",
    "hidden states": "#a6761d",
    "masked": "#009e73",
    "DiMS": "#cc79a7",
}
PRECEDENCE = {
    "dims": "DiMS",
    "a2d": "A2D",
    "tie_kd": "TIE-KD",
    "hidden": "hidden states",
    "word_kd": "word KD",
    "masked_cross_entropy": "masked",
}

# Who computes a loss, as benchmarks call them.
PROVIDERS = {
    "reference": "#8c8c8c",
    "compile": "#e69f00",
    "plain": "#d55e00",
    "torch": "#0072b2",
    "torch-uncompiled": "#56b4e9",
    "triton": "#009e73",
    "liger": "#cc79a7",
    "cce": "#a6761d",
    "pytorch": "#666699",
    "pytorch-chunked": "#b2df8a",
}

PHASES = {"forward": "#4477aa", "backward": "#ee6677", "optimizer": "#ccbb44"}

_LINES = ("-", "--", ":", "-.")


def styles(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and line of each of several methods: those of one kind share its hue.

    The second and the following ones are lighter and have another line.
    """
    seen: dict[str, int] = {}
    found = []
    for kind in kinds:
        number = seen[kind] = seen.get(kind, -1) + 1
        found.append((lighter(METHODS[kind], number), _LINES[number % len(_LINES)]))
    return found


def lighter(colour: str, steps: int) -> str:
    """#rrggbb with a quarter of what lacks to white added, `steps` times; never pale."""
    kept = max(0.72**steps, 0.35)
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * kept):02x}" for part in parts)
