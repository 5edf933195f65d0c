"""Signatures that are written once, as a dataclass of options."""

import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def spelled_out(options: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function whose `**options` are the fields of a dataclass: `help` shows each."""

    def spell(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        kept = [each for each in own.parameters.values() if each.kind != each.VAR_KEYWORD]
        fields = inspect.signature(options).parameters.values()
        named = [each.replace(kind=each.KEYWORD_ONLY) for each in fields]
        function.__signature__ = own.replace(parameters=[*kept, *named])  # type: ignore[attr-defined]
        return function

    return spell
