"""What a call of the query-key form is planned by: layouts and options, without the tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd_kernels.attention.config import EDGES
from fastkd_kernels.attention.mixing.launch import MapView, Settings

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Shape, strides and dtype of a tensor that a call brings."""

    shape: Shape
    strides: Shape
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "Layout":
        return Layout(tensor.shape, tensor.stride(), tensor.dtype)


@dataclass(frozen=True)
class Side:
    """The student's or the teacher's queries and keys."""

    name: str
    query: Layout
    key: Layout
    scale: float

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def group(self) -> int:
        return self.heads // self.key.shape[1]

    @property
    def size(self) -> int:
        return self.query.shape[3]

    @property
    def lengths(self) -> Shape:
        """What a unit of strides has to divide."""
        return (*self.query.strides[:3], *self.key.strides[:3], self.size)

    @property
    def far(self) -> bool:
        """Whether offsets within a head exceed int32."""
        return any(
            (layout.shape[2] + EDGES[-1]) * layout.strides[2] >= 1 << 31
            for layout in (self.query, self.key)
        )

    def strides(self, unit: int, prefix: str) -> dict[str, int]:
        names = ("batch", "head", "row")
        return {
            f"{prefix}{what}_{name}": value
            for what, layout in (("query", self.query), ("key", self.key))
            for name, value in (
                *zip(names, (stride // unit for stride in layout.strides[:3]), strict=True),
                ("size", layout.strides[3]),
            )
        }

    @property
    def contiguous(self) -> bool:
        return self.query.strides[3] == 1 and self.key.strides[3] == 1

    def view(self, rows: int, pitch: int) -> MapView:
        strides = (self.heads * rows * pitch, rows * pitch, pitch, 1)
        return MapView(f"{self.name}_maps", strides, pitch)


class Request(NamedTuple):
    """What a call is planned by: the same for every call of a shape."""

    student: tuple[Layout, Layout]
    teacher: tuple[Layout, Layout]
    lengths: tuple[bool, bool]  # whether there are lengths of queries, of keys
    upstream: bool  # (B, Nt), or ones
    settings: Settings
    reduce: float  # what the sum of all losses is multiplied by; 0: losses stay apart
    gradient_dtype: torch.dtype  # of queries and keys
    device: torch.device
    budget: int
