"""Runs code on tensors that have shapes and no data, and records the memory they would take."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_any

from fastkd.memory.tracker import Tracker

_REAL_AT_MOST = 1 << 20  # elements; larger integers made from nothing have no data either
_ASKED = ("aten::_local_scalar_dense", "aten::is_nonzero")


class Predictor(Tracker):
    """A tracker for modules and inputs made under `fake_mode`.

    Integers (ids, lengths, masks made of them) stay real, so code that reads them takes the way
    that it takes in earnest. Where code on a CPU asks whether a tensor without data holds
    something rare that needs more work, such as a logit of −inf, the answer is `rare`.
    """

    rare = False

    def __init__(
        self, fake_mode: FakeTensorMode, modules: dict[str, nn.Module] | None = None
    ) -> None:
        super().__init__(modules)
        self.fake_mode = fake_mode

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fake = tree_any(lambda leaf: isinstance(leaf, FakeTensor), (args, kwargs))
        if not fake:
            return self._without_fakes(func, args, kwargs)
        if func._schema.name in _ASKED:
            return self._answer(args[0])
        target = args[0] if args else None
        if func._schema.is_mutable and _real(target) and len(func._schema.returns) == 1:
            return target  # data that nobody can know is not written into it
        return func(*args, **kwargs)

    def _without_fakes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not tree_any(_real, (args, kwargs)):
            with self.fake_mode:
                shaped = func(*args, **kwargs)
            if isinstance(shaped, FakeTensor) and (
                shaped.is_floating_point() or shaped.numel() > _REAL_AT_MOST
            ):
                return shaped
        return func(*args, **kwargs)

    def _answer(self, tensor: torch.Tensor) -> bool | int | float:
        if tensor.dtype == torch.bool:
            return self.rare
        return float(self.rare) if tensor.is_floating_point() else 1


def _real(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor)
