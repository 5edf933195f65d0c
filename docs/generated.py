"""Pages that are written from the code and from results: configuration, recipes, figures."""

import dataclasses
import inspect
import re
import shutil
import typing
from pathlib import Path

from fastkd.config import losses, schedule, tree
from fastkd.config.recipes import recipes

_PLACES = {  # in a run's configuration
    tree.Config: "the whole", tree.DataConfig: "`data`", tree.TokenizerConfig: "`tokenizer`",
    tree.ModelConfig: "`model`", tree.CMLMConfig: "`model.cmlm`",
    tree.TrainingConfig: "`training`", tree.OptimizerConfig: "`training.optimizer`",
    tree.DecodingConfig: "`decoding`", tree.StartConfig: "`start`", tree.TeacherConfig: "`teacher`",
    schedule.Schedule: "a weight that changes", schedule.RepeatsSchedule: "iterations that change",
}  # fmt: skip
_ORDER = (
    tree.Config, tree.DataConfig, tree.TokenizerConfig, tree.ModelConfig, tree.CMLMConfig,
    tree.TrainingConfig, tree.OptimizerConfig, tree.DecodingConfig, tree.StartConfig,
    tree.TeacherConfig, losses.CrossEntropy, losses.WordKD, losses.TieKD, losses.A2D,
    losses.HiddenStates, losses.MaskedCrossEntropy, losses.Length, losses.DiMS,
    schedule.Schedule, schedule.RepeatsSchedule,
)  # fmt: skip


def write(root: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "configuration.inc").write_text(configuration(), encoding="utf-8")
    (folder / "recipes.inc").write_text(recipe_table(), encoding="utf-8")
    (folder / "benchmarks.inc").write_text(measured(root), encoding="utf-8")
    results = root / "benchmarks" / "translation" / "results"
    for kind, place in (("translation", results), ("decided", results / "decided")):
        for table in sorted(place.glob("*.md")):
            shutil.copyfile(table, folder / f"{kind}-{table.stem}.inc")


def measured(root: Path) -> str:
    """The generated part of the benchmarks' page, its pictures by where they lie from `docs`."""
    text = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    part = text.split("<!-- benchmarks:begin -->", 1)[1].split("<!-- benchmarks:end -->", 1)[0]
    return re.sub(r"\]\((?!http)", "](../benchmarks/", part)


def configuration() -> str:
    """Each class of the configuration with its keys, their types, defaults and meaning."""
    parts = []
    for cls in _ORDER:
        name = getattr(cls, "name", None)
        title = f"`losses`: `{name}`" if name else _PLACES[cls].capitalize()
        parts.append(f"## {title}\n\n{inspect.getdoc(cls)}\n")
        parts.append("| key | default | meaning |\n|---|---|---|")
        meanings = comments(cls)
        for field in dataclasses.fields(cls):
            if field.name != "name":
                meaning = meanings.get(field.name, "")
                kind = _kind(cls, field)
                parts.append(f"| `{field.name}` | {_default(field)} | {kind}{meaning} |")
        parts.append("")
    return "\n".join(parts)


def comments(cls: type) -> dict[str, str]:
    """By key, the comment at its end and in the lines below it."""
    found: dict[str, str] = {}
    last = None
    for line in inspect.getsource(cls).splitlines():
        key = re.match(r"    (\w+): ", line)
        comment = re.search(r"(?:^|\s)# (?!fmt|noqa)(.*)$", line)
        if key:
            last = key[1]
            found[last] = comment[1] if comment else ""
        elif comment and last and line.lstrip().startswith("#"):
            found[last] += " " + comment[1]
    return {key: text.replace("|", "\\|") for key, text in found.items()}


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return "–" if value is None else f"`{value}`"
    return "its own" if field.default_factory is not dataclasses.MISSING else "required"


def _kind(cls: type, field: dataclasses.Field) -> str:
    """The values that may be given, where they are few."""
    hint = typing.get_type_hints(cls)[field.name]
    choices = [str(v) for part in (hint, *typing.get_args(hint)) for v in _choices(part)]
    return f"one of {', '.join(f'`{choice}`' for choice in choices)}; " if choices else ""


def _choices(hint: object) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def recipe_table() -> str:
    lines = [f"| `{recipe.name}` | {recipe.summary} |" for recipe in recipes()]
    return "\n".join(["| recipe | |", "|---|---|", *lines, ""])
