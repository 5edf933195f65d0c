"""What pydantic finds wrong with a configuration, in one line that names the key."""

import dataclasses
import difflib
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

Location = tuple[str | int, ...]  # of a problem of pydantic's
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's names for it
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_QUOTE = "'"  # around pydantic's names of keys
_EXPECTED = {  # where pydantic speaks of Python
    "dataclass_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "tuple_type": "a list",
    "invalid_key": "keys that are words",
}


def complaint(error: ValidationError, tree: Any, kind: type) -> str:
    """The first problem, with the nearest known key for an unknown one.

    kind: the dataclass that the tree was to be
    """
    problems = [p for p in error.errors() if not _other_alternative(p, tree)] or error.errors()
    # An unknown key first: it is often the misspelt one that is reported as missing.
    problem = min(problems, key=lambda p: p["type"] not in UNKNOWN)
    location = [str(part) for part in _tree_path(problem["loc"], tree)]
    key = ".".join(location)
    if problem["type"] in UNKNOWN:
        return f"{key}: unknown key{_hint(location, problem['loc'], kind)}"
    if problem["type"] in _MISSING:
        return f"{key}: required, but missing"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.{problem['ctx']['discriminator'].strip(_QUOTE)}: required, but missing"
    if problem["type"] == "union_tag_invalid":
        tag = problem["ctx"]["discriminator"].strip(_QUOTE)
        return f"{key}.{tag}: expected one of {problem['ctx']['expected_tags']}"
    message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: expected {message}"
    # Bounded in depth: a few lines of YAML that refer to each other may stand for gigabytes.
    shown = reprlib.repr(problem["input"])
    expected = _EXPECTED.get(problem["type"], message)
    return f"{key}: expected {expected}, not {shown if len(shown) < 60 else shown[:57] + '...'}"


def _hint(location: list[str], where: Location, kind: type) -> str:
    """The key of that name elsewhere, else the nearest one beside it, else elsewhere."""
    name = location[-1]
    elsewhere = {path.rpartition(".")[2]: path for path in reversed(list(paths(kind)))}
    near = difflib.get_close_matches(name, _known_keys(where, kind), 1, 0.5)
    far = difflib.get_close_matches(name, elsewhere, 1, 0.8)
    if name in elsewhere:
        meant = elsewhere[name]
    elif near:
        meant = ".".join([*location[:-1], near[0]])
    elif far:
        meant = elsewhere[far[0]]
    else:
        return ""
    return f"; did you mean {meant}?"


def paths(kind: type, above: str = "") -> Iterator[str]:
    """Every key with what it is below of; losses by their names."""
    for field in dataclasses.fields(kind):
        yield f"{above}{field.name}"
        for below in _dataclasses_in(typing.get_type_hints(kind)[field.name]):
            name = getattr(below, "name", None)
            if name is not None:
                yield f"{above}{field.name}.{name}"
            else:
                yield from paths(below, f"{above}{field.name}.")


def _other_alternative(problem: Mapping[str, Any], tree: Any) -> bool:
    """Whether a complaint is about the alternative of a union that the input did not mean."""
    location = problem["loc"]
    if location[:1] != ("tokenizer",) or not isinstance(tree, dict) or len(location) < 2:
        return False
    meant = isinstance(tree.get("tokenizer"), dict)
    return bool((location[1] == "TokenizerConfig") != meant)


def _tree_path(location: Location, tree: Any) -> list[str | int]:
    """`location` without the names of union alternatives that pydantic puts into it."""
    path: list[str | int] = []
    node = tree
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(node, dict):
            inside = part in node
        else:
            inside = isinstance(part, int) and isinstance(node, list | tuple) and part < len(node)
        if inside:
            node = node[part]
        if inside or (last and isinstance(node, dict)) or (last and isinstance(part, int)):
            path.append(part)
    return path


def _known_keys(location: Location, root: type) -> list[str]:
    classes: list[type] = [root]
    for part in location[:-1]:
        tagged = [c for c in classes if getattr(c, "name", None) == part]
        below = [
            alternative
            for c in classes
            for f in dataclasses.fields(c)
            if f.name == part
            for alternative in _dataclasses_in(typing.get_type_hints(c)[part])
        ]
        classes = tagged or below or classes
    return [f.name for c in classes for f in dataclasses.fields(c)]


def _dataclasses_in(hint: Any) -> list[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [c for argument in typing.get_args(hint) for c in _dataclasses_in(argument)]
