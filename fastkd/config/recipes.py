"""The bundled recipes, each a configuration to start from."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(str(resources.files("fastkd") / "recipes"))


class Recipe(NamedTuple):
    name: str  # as `fastkd train` takes it
    summary: str  # the comment in its first line


def recipes(prefix: str = "") -> Iterator[Recipe]:
    """Those whose names begin with `prefix`, by name."""
    files = FOLDER.rglob("*.yaml")
    for file in sorted(files, key=lambda file: (file.parent.name, file.stem)):
        name = file.relative_to(FOLDER).with_suffix("").as_posix()
        if name.startswith(prefix):
            first = file.read_text(encoding="utf-8").split("\n", 1)[0]
            yield Recipe(name, first.removeprefix("# "))
