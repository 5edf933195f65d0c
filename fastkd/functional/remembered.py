"""What calls that are alike in all but their values need not do again: checks, and options."""

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

Given = ParamSpec("Given")
Made = TypeVar("Made")

_PLAIN = (Tensor, Parameter)
_MOST = 4096  # layouts; more are forgotten all at once
_passed: set[Hashable] = set()


def layout(check: str, options: Hashable, *tensors: object) -> Hashable | None:
    """What `check` asks of a call but values; None where it has to be made on each call.

    Such are calls that a compiler traces, and those with anything but plain tensors.
    """
    if torch.compiler.is_compiling():
        return None
    found: list[Hashable] = [check, options, torch._C._is_any_autocast_enabled()]
    for given in tensors:
        if given is None:
            found.append(None)
            continue
        layers = given if isinstance(given, tuple | list) else (given,)
        found.append(len(layers))
        for tensor in layers:
            if type(tensor) not in _PLAIN:
                return None
            found += (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
    return tuple(found)


def passed(layout: Hashable | None) -> bool:
    return layout is not None and layout in _passed  # a graph must not hold what was passed


def remember(layout: Hashable | None) -> None:
    if layout is None or layout in _passed:
        return
    if len(_passed) >= _MOST:
        _passed.clear()
    _passed.add(layout)


def kept(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """`make`, which returns the same object for the same arguments where no compiler traces."""
    remembered = lru_cache(maxsize=256, typed=True)(make)  # 1 is a whole number and 1.0 is none

    @wraps(make)
    def made(*arguments: Given.args, **options: Given.kwargs) -> Made:
        if not torch.compiler.is_compiling():
            try:
                return remembered(*arguments, **options)  # type: ignore[arg-type]
            except TypeError:  # something that cannot be hashed, or no option
                pass
        return make(*arguments, **options)

    return made
