"""Reads a configuration: YAML file, then `key.path=value` overrides, then validation."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from fastkd.config.complaint import complaint
from fastkd.config.recipes import nearest
from fastkd.config.tree import Config
from fastkd.errors import InputError
from fastkd.reading import read_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes for numbers what YAML 1.2 does: 1e-4 is one; 1:30 and 010 are text.

    Refuses a key that is there twice, of which PyYAML would take the last in silence.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _NUMBERS[0],
    re.compile(r"[-+]?(0|[1-9][0-9_]{0,30}|0x[0-9a-fA-F]{1,16})\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(
        r"[-+]?(([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))\Z"
        r"|\.(nan|NaN|NAN)\Z"
    ),
    list("-+.0123456789"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration in `path`, with `key.path=value` overrides applied.

    `path` is a YAML file, or the name of a bundled recipe such as `wmt22-de-dsb/teacher`.
    A file may name another file or recipe that it `extends`, which is read first and overlaid.
    """
    path = find_config(path)
    tree = read_tree(path)
    usual = [{"name": loss.name} for loss in Config.losses]
    return validate(overridden(tree, overrides, usual), str(path))


def overridden(
    tree: dict[str, Any], overrides: Sequence[str], losses: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The tree with `key.path=value` overrides applied to it.

    losses: those of a tree that names none, for `losses.NAME.key=value`
    """
    for override in overrides:
        if override.startswith("losses.") and tree.get("losses") is None:
            tree["losses"] = [dict(loss) for loss in losses]
        _override(tree, override)
    return tree


def validate(tree: dict[str, Any], name: str) -> Config:
    """Checks a plain tree; `name` is what a complaint calls it."""
    return validate_as(Config, tree, name)


def validate_as(kind: type[Part], tree: dict[str, Any], name: str) -> Part:
    """A plain tree as a dataclass of this kind; `name` is what a complaint calls it."""
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise InputError(f"{name}: {complaint(error, tree, kind)}") from None


def revised(part: Part, name: str, **changes: Any) -> Part:
    """A part of a configuration with other values, checked; `name` is what a complaint calls it."""
    try:
        return dataclasses.replace(part, **changes)
    except ValidationError as error:
        raise InputError(f"{name}: {complaint(error, changes, type(part))}") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    tree = TypeAdapter(Config).dump_python(config, mode="json")
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text


def parse(text: str) -> Any:
    """What a text in YAML says; YAMLError where it is none, or has a date that does not exist."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


def find_config(path: str | Path) -> Path:
    """The file at `path`, or the bundled recipe of that name."""
    if Path(path).is_file():
        return Path(path)
    recipe = _recipe(path)
    if recipe.is_file():
        return recipe
    raise InputError(f"{path}: no such config file, nor a recipe of that name{nearest(str(path))}")


def _recipe(name: str | Path) -> Path:
    return Path(str(resources.files("fastkd") / "recipes" / f"{name}.yaml"))


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a YAML file and of those that it extends."""
    if path.resolve() in seen:
        raise InputError(f"{path}: extends: files extend each other in a circle")
    try:
        tree = parse(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: not valid YAML{place}: {reason}") from None
    if tree is None:
        raise InputError(f"{path}: empty; expected keys such as run, data, model, training")
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of keys, not a {type(tree).__name__}")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    files = [path.parent / base, _recipe(base)] if isinstance(base, str) else []
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise InputError(
            f"{path}: extends: expected a file beside it or the name of a recipe, not {base!r}"
            f"{nearest(str(base))}"
        )
    return _overlay(read_tree(found, (*seen, path.resolve())), tree)


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _overlay(base[key], value) if both else value
    return merged


def _override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"{override!r}: expected key.path=value")
    try:
        value = parse(text)
    except yaml.YAMLError:
        raise InputError(f"{override!r}: the value is not valid YAML") from None
    *parents, leaf = path.split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, leaf, override)] = value
    elif isinstance(node, dict):
        node[leaf] = value
    else:
        raise InputError(f"{override!r}: {'.'.join(parents)} is a value, it has no keys")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise InputError(f"{override!r}: {part} is below a value, which has no keys")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    """Of an item of a list: its number, or, of losses, its name."""
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part in names:
        return names.index(part)
    if not part.isdecimal() or int(part) >= len(node):
        known = [name for name in names if isinstance(name, str)]
        told = "".join(f" or {name}" for name in known)
        near = difflib.get_close_matches(part, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{override!r}: expected an index below {len(node)}{told}, not {part!r}{hint}"
        )
    return int(part)
