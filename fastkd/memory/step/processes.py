"""Several processes as the memory of one of them sees them, without the others."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fastkd.errors import InputError
from fastkd.train.ranks import Ranks

SHARDINGS = ("none", "fully_shard")


@dataclass(frozen=True)
class Processes:
    """How many there are, and how they share a step: `training.sharding`."""

    number: int = 1
    sharding: str = "none"

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InputError(f"processes: expected at least 1, not {self.number}")
        if self.sharding not in SHARDINGS:
            raise InputError(
                f"sharding: expected one of {', '.join(SHARDINGS)}, not {self.sharding!r}"
            )

    @property
    def divide(self) -> bool:
        """Whether each holds only its part of the parameters."""
        return self.number > 1 and self.sharding != "none"

    @contextlib.contextmanager
    def pretended(self) -> Iterator[DeviceMesh | None]:
        """Within, this is the first of them, and what the others would send has no content."""
        if self.number == 1:
            yield None
            return
        if dist.is_initialized():
            raise InputError(
                "processes: a prediction needs a process that belongs to no process group"
            )
        # PyTorch's own group of one process that passes for many; it is public by name only.
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=self.number)
        try:
            yield init_device_mesh("cpu", (self.number,))
        finally:
            dist.destroy_process_group()

    def met(self, device: torch.device) -> DeviceMesh | None:
        """All of them, of which this is one."""
        if self.number == 1:
            return None
        if not dist.is_initialized() or dist.get_world_size() != self.number:
            raise InputError(
                f"processes: to measure {self.number} expected as many of one process group; "
                "predicted() needs one alone"
            )
        return init_device_mesh(device.type, (self.number,))

    def buckets(self, parameters: list[nn.Parameter]) -> Tensor | None:
        """What DistributedDataParallel keeps beside gradients, to exchange them."""
        if self.number == 1 or self.divide:
            return None
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        return trained[0].new_empty(size, dtype=torch.uint8)  # without data where they are


@dataclass(frozen=True)
class PretendedRanks(Ranks):
    """The first of several processes; what DistributedDataParallel adds is counted apart."""

    made: DeviceMesh | None = None

    def mesh(self, device: torch.device) -> DeviceMesh:
        assert self.made is not None
        return self.made

    def parallel(self, module: nn.Module, sharding: str, device: torch.device) -> nn.Module:
        return module if sharding == "none" else super().parallel(module, sharding, device)
