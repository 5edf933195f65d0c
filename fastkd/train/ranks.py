"""The processes of one run, as `torchrun` starts them; a run on its own is one of one."""

import contextlib
import datetime
import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fastkd.errors import RunFailed
from fastkd.train.roll_call import RollCall

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` ones that compute the same update together."""

    rank: int = 0
    size: int = 1
    roll_call: RollCall | None = field(default=None, compare=False, repr=False)

    @classmethod
    def join(cls, device: torch.device, timeout: float) -> "Ranks":
        """Meets the other processes where `torchrun` started several: NCCL on GPUs, else gloo.

        timeout: seconds without progress after which a process that holds up the others is named,
            and the run ends
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        # Where the roll call could not end the run, a process group that has waited twice as long.
        patience = datetime.timedelta(seconds=2 * timeout)
        store, rank, size = next(rendezvous("env://", timeout=patience))
        backend = "nccl" if device.type == "cuda" else "gloo"
        group = {"rank": rank, "world_size": size, "timeout": patience}
        dist.init_process_group(backend, store=PrefixStore("group", store), **group)
        return cls(rank, size, RollCall(store.clone(), rank, size, timeout))

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def parallel(self, module: nn.Module, sharding: str, device: torch.device) -> nn.Module:
        """`module` with gradients averaged over the processes, and divided where asked for."""
        if self.size == 1:
            return module
        if sharding == "fully_shard":
            from fastkd.train.sharding import shard

            shard(module, self.mesh(device))
            return module
        with warnings.catch_warnings():
            # PyTorch 2.13 has another name for broadcast_buffers, which 2.11 lacks.
            warnings.simplefilter("ignore", FutureWarning)
            # Which losses reach which parameter differs from update to update in masked models.
            return nn.parallel.DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=True
            )

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes in one dimension."""
        return init_device_mesh(device.type, (self.size,))

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `size`-th item, beginning with this process's."""
        return items[self.rank :: self.size]

    def join_shares(self, mine: Sequence[Any]) -> list[Any]:
        """The items of all processes in the order that `share` took them from."""
        if self.size == 1:
            return list(mine)
        self.meet()
        shares: list[Any] = [None] * self.size
        dist.all_gather_object(shares, list(mine))
        missing = object()
        rows = zip_longest(*shares, fillvalue=missing)
        return [item for item in chain.from_iterable(rows) if item is not missing]

    def check_same(self, read: Mapping[str, object]) -> None:
        """RunFailed, in all processes, unless all have read the same.

        read: hashes of what each has read by itself, by the keys that name it, which all have
        """
        everyone = self.join_shares([dict(read)])
        for key, own in read.items():
            if any(other[key] != own for other in everyone):
                raise RunFailed(
                    f"{key}: the processes of this run have read different files there, as where "
                    "they are replaced meanwhile, or differ from machine to machine; expected the "
                    "same ones for all"
                )

    def total(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums by name over the processes, which must all have the same names."""
        if self.size == 1 or not values:
            return values
        self.meet()
        stacked = torch.stack([value.double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return here
        self.meet()
        flag = torch.tensor(float(here), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def largest(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The largest of each over the processes, which must all have the same names."""
        stacked = torch.stack([value.double() for value in values.values()])
        if self.size > 1:
            self.meet()
            dist.all_reduce(stacked, dist.ReduceOp.MAX)
        return dict(zip(values, stacked.tolist(), strict=True))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.meet()
            dist.barrier()

    def meet(self) -> None:
        """Notes that this process has come to a place that all come to, equally often."""
        if self.roll_call is not None:
            self.roll_call.met()

    def go_on(self) -> None:
        """Notes that this process has done something that may take long."""
        if self.roll_call is not None:
            self.roll_call.went_on()

    def leave(self) -> None:
        """Parts from the other processes, when nothing holds a module of `parallel` any more.

        A DistributedDataParallel that outlives the group destroys it with the interpreter locked,
        and may wait for ever for a thread of the group that waits for the interpreter.
        """
        if self.roll_call is not None:
            self.roll_call.end()
        if self.size > 1:
            gc.collect()
            dist.destroy_process_group()


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Says that another process has ended, where only a connection to it was seen to break."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise RunFailed(
            f"process {os.environ.get('RANK')}: another process of the run has ended or cannot be "
            "reached; the same command goes on from the newest checkpoint"
        ) from error
