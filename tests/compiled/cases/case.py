"""What is executed and compared."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INF = float("inf")
# Name of a way to compute -> results: "truth" is the reference in float64, "plain" PyTorch at the
# precision of the kernels, "triton" the kernels.
Results = Callable[[str], list[Tensor]]
# (ours, plain, truth) -> the largest error over what is allowed.
Ratio = Callable[[list[Tensor], list[Tensor], list[Tensor]], float]


@dataclass(frozen=True)
class Prepared:
    """A case with its tensors."""

    run: Results
    ratio: Ratio
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


@dataclass(frozen=True)
class Case:
    """One call of a loss, with its gradients.

    quick: whether it belongs to the list of every test run
    """

    name: str
    dtype: str
    prepare: Callable[[], Prepared]
    quick: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.dtype}"
