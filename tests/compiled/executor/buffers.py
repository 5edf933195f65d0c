"""The tensors of a launch as the machine sees them, and memory that nobody has written."""

from typing import Any

import numpy as np
import torch

from tests.compiled.executor.launch import Buffer

LARGE = 1 << 26  # bytes of a tensor that is not filled before it is handed out


def buffers_of(tensors: list[torch.Tensor]) -> tuple[list[Buffer], dict[int, int]]:
    """A buffer for each storage, and the address of each; no overrun meets a neighbour."""
    storages: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    found, bases = [], {}
    for index, (host, views) in enumerate(storages.items()):
        size = views[0].untyped_storage().nbytes()
        valid = np.zeros(size + 16, np.uint8)
        for view in views:
            item = view.element_size()
            cells = torch.from_numpy(valid[: size // item * item]).view(-1, item)
            if view.numel():
                strides = (*(stride * item for stride in view.stride()), 1)
                covered = torch.as_strided(
                    cells, (*view.shape, item), strides, view.storage_offset() * item
                )
                covered.fill_(1)
        base = ((index + 1) << 36) + (1 << 20) + host % 256
        bases[host] = base
        found.append(Buffer(base, host, size, valid, _still_unwritten(views[0], size)))
    return found, bases


def _still_unwritten(tensor: torch.Tensor, size: int) -> np.ndarray:
    """Of each byte, whether its element is still the NaN that only `unwritten` makes."""
    poison = np.zeros(size + 16, np.uint8)
    if 0 < size <= LARGE and tensor.is_floating_point():
        storage = tensor.untyped_storage()
        raw = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
        item = tensor.element_size()
        elements = np.all(raw[: size // item * item].reshape(-1, item) == 0xFF, axis=1)
        poison[: size // item * item] = np.repeat(elements, item)
    return poison


def unwritten(make: Any) -> Any:
    """`make`, whose tensors hold NaN: nobody has written them."""

    def fill(*args: Any, **options: Any) -> torch.Tensor:
        tensor: torch.Tensor = make(*args, **options)
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            storage = tensor.untyped_storage()
            if 0 < storage.nbytes() <= LARGE:
                torch.tensor([], dtype=torch.uint8).set_(storage).fill_(0xFF)
        return tensor

    return fill
