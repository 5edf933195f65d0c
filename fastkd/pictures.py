"""Figures of matplotlib as files, which tell what they show, so that a stale one is noticed."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from fastkd.files import whole_file, writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_picture(figure: "Figure", file: Path, shown: str = "", dpi: int = 120) -> None:
    """Writes a figure, in the format that the file's name ends in, and closes it.

    shown: a digest, which a PNG keeps
    """
    from matplotlib import pyplot

    kind = file.suffix[1:]
    metadata = {"Software": None, "Description": shown} if kind == "png" else None
    try:
        with writable(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as stream:
                figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
    finally:
        pyplot.close(figure)


def shown_by(file: Path) -> str | None:
    """The digest that a PNG keeps; None where it has none, or is not there."""
    from PIL import Image

    if not file.is_file():
        return None
    with Image.open(file) as picture:
        found = picture.info.get("Description")
    return found if isinstance(found, str) else None


def digest(*data: object) -> str:
    """Of what a picture shows."""
    return hashlib.sha256(repr(data).encode()).hexdigest()


def log_ticks(low: float, high: float, least: int = 3) -> list[float]:
    """At powers of ten; where those are fewer than `least`, at 1, 2, 5, at 1 to 9, or evenly."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), tuple(range(1, 10))):
        ticks = [step * 10.0**power for power in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= least:
            return inside
    even = 10.0 ** math.floor(math.log10((high - low) / least))
    step = max(even * times for times in (1, 2, 5) if (high - low) / (even * times) >= least)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
