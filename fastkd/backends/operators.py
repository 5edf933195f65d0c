"""Options as arguments of PyTorch operators, which stand in graphs for what is not traced."""

from typing import Any, get_type_hints

TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    float | None: "float?",
    int | None: "int?",
}


def schema_of(options: type) -> str:
    """The fields of a dataclass as a schema's arguments, in their order."""
    return ", ".join(f"{TYPES[kind]} {name}" for name, kind in get_type_hints(options).items())


def names_of(options: type) -> tuple[str, ...]:
    return tuple(get_type_hints(options))


def packed(options: Any, names: tuple[str, ...]) -> list[Any]:
    """The arguments that `schema_of` describes; the dataclass is made of them again."""
    return [getattr(options, name) for name in names]
