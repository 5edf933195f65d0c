"""What PyTorch's own operators cost: kernels, bytes, flops and exponentials, without any data."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastkd.bench.chips import Calculated
from fastkd.bench.operation import Inputs, Loss, learned

_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
_TRANSCENDENTAL = ("exp", "log", "_softmax", "_log_softmax", "xlogy")


def traffic(loss: Loss, inputs: Inputs) -> Calculated:
    """Of a loss and its gradients, each operator a kernel that reads and writes all it is given.

    inputs: of `FakeTensorMode`, without data
    """
    with _Counter() as counter:
        torch.autograd.grad(loss(inputs), learned(inputs))
    return Calculated(
        counter.launches, 0.0, counter.bytes, 0.0, counter.flops, counter.exponentials
    )


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = 0
        self.bytes = self.flops = self.exponentials = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.namespace != "aten" or name in _EMPTY or _is_view(func):
            return found
        self.launches += 1
        written = _tensors(found)
        self.bytes += sum(map(_bytes, (*_tensors(args), *_tensors(kwargs), *written)))
        if func.overloadpacket in flop_registry:
            count = flop_registry[func.overloadpacket]
            self.flops += float(count(*args, **kwargs, out_val=found))
        if name in _TRANSCENDENTAL:
            self.exponentials += sum(tensor.numel() for tensor in written)
        return found


def _is_view(func: Any) -> bool:
    returns = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Of the elements that differ: expanded dimensions are read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()
