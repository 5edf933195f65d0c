"""Processes that train together: what one of them refuses ends all, by the same line."""

from typing import Any

import torch.distributed as dist
from torch import Tensor

from fastkd.errors import InputError
from fastkd.integrations.counts import REFUSED

_told = 0  # refusals that this process has ended with


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def tell(line: str) -> None:
    """Has all processes end with this line, or with that of another that told one before."""
    # By the store, as the others may be anywhere but at an exchange of their own.
    _store().compare_set(_key(), "", line)


def end_if_told(counts: Tensor) -> None:
    """Raises InputError where `counts`, summed over processes, say that one has told a line."""
    global _told
    if counts[REFUSED] > 0:
        line = _store().get(_key()).decode()
        _told += 1
        raise InputError(line)


def most(count: int) -> int:
    """The largest that a process gives; all of them have to ask."""
    counts: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(counts, count)
    return max(counts)


def _key() -> str:
    return f"fastkd/refused/{_told}"


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
