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


def most(count: int, batches: int, complaint: str | None = None) -> int:
    """The largest count of new kinds that a process gives; all of them have to ask.

    batches: how many this process has, of which one has to serve where others have new kinds
    complaint: what it refuses before any pass

    Raises InputError in all of them, by the same line, where one of them cannot make the passes.
    """
    told: list[tuple[int, int, str | None]] = [(0, 0, None)] * dist.get_world_size()
    dist.all_gather_object(told, (count, batches, complaint))
    counts = [each[0] for each in told]
    for rank, (_, held, line) in enumerate(told):
        if line is not None:
            raise InputError(line)
        if not held and any(counts):
            raise InputError(
                f"batches: none in process {rank} where others meet a new kind of batch; expected "
                "one in every process while FSDP2 divides a model"
            )
    return max(counts)


def _key() -> str:
    return f"fastkd/refused/{_told}"


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
