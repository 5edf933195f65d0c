"""The bundled recipes, each a configuration to start from."""

import difflib
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


def nearest(name: str) -> str:
    """What a complaint about a recipe that is not there ends with."""
    found = difflib.get_close_matches(name, [recipe.name for recipe in recipes()], 1)
    return f"; did you mean {found[0]}?" if found else ""
