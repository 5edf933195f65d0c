"""What PyTorch's allocator of this process holds beside a step that is measured on a GPU."""

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastkd.memory.tracker import Tracker, local


class Labelling(Protocol):
    def label(self, tracker: Tracker) -> None: ...


@dataclass(frozen=True)
class Others:
    """Bytes of PyTorch's allocator in blocks, and in segments, that hold nothing of the step's.

    Such as models that were on the device before. A segment that the step shares with them counts
    as the step's.
    """

    allocated: int = 0
    reserved: int = 0

    @classmethod
    def beside(cls, step: Labelling, device: torch.device) -> "Others":
        """To be asked when the step is made, and has not run: what is cached goes before that."""
        if torch.cuda.get_allocator_backend() != "native":
            return cls()  # which tells of no blocks
        gc.collect()
        # What products of matrices took earlier is the step's too, when it takes it anew.
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        torch.cuda.empty_cache()
        own = _Addresses()
        step.label(own)
        allocated = reserved = 0
        for segment in torch.cuda.memory_snapshot():
            if torch.device("cuda", segment["device"]) != _numbered(device):
                continue
            blocks, shared = _blocks(segment), False
            for address, size in blocks:
                shared |= address in own.found
                allocated += size if address not in own.found else 0
            reserved += 0 if shared else segment["total_size"]
        return cls(allocated, reserved)


class _Addresses(Tracker):
    """Finds where the memory starts that it is told to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def hold(self, tensors: Iterable[Tensor | None], label: str) -> None:
        self.found |= {local(t).untyped_storage().data_ptr() for t in tensors if t is not None}

    def watch(self, units: Iterable[Callable[[], Sequence[Tensor]]]) -> None:
        pass  # filled and emptied by the step alone


def _numbered(device: torch.device) -> torch.device:
    number = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", number)


def _blocks(segment: dict[str, Any]) -> list[tuple[int, int]]:
    """Address and size of what is in use."""
    found, address = [], segment["address"]
    for block in segment["blocks"]:
        address = block.get("address", address)
        if block["state"] == "active_allocated":
            found.append((address, block["size"]))
        address += block["size"]
    return found
