"""The processes of one run, as `torchrun` starts them; a run on its own is one of one."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")
_PATIENCE = datetime.timedelta(minutes=30)  # for the slowest rank; decoding may take a while


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` ones that compute the same update together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Meets the other processes where `torchrun` started several: NCCL on GPUs, else gloo."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over the processes."""
        if self.size == 1:
            return module
        # Which losses reach which parameter differs from update to update in masked models.
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=True
        )

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `size`-th item, beginning with this process's."""
        return items[self.rank :: self.size]

    def join_shares(self, mine: Sequence[Any]) -> list[Any]:
        """The items of all processes in the order that `share` took them from."""
        if self.size == 1:
            return list(mine)
        shares: list[Any] = [None] * self.size
        dist.all_gather_object(shares, list(mine))
        missing = object()
        rows = zip_longest(*shares, fillvalue=missing)
        return [item for item in chain.from_iterable(rows) if item is not missing]

    def total(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums by name over the processes, which must all have the same names."""
        if self.size == 1 or not values:
            return values
        stacked = torch.stack([value.double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return here
        flag = torch.tensor(float(here), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Parts from the other processes."""
        if self.size > 1:
            dist.destroy_process_group()
