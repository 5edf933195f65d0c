"""What a benchmark measures: an operation, its shapes, its inputs and the least work it takes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastkd.errors import InputError

Shape = Mapping[str, int]
Inputs = dict[str, Any]  # tensors, or None, by argument name; those that require grad are learned
Loss = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Work:
    """The least that an operation must do, recomputation left out."""

    flops: float = 0.0
    bytes: float = 0.0
    exponentials: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.exponentials + other.exponentials,
        )


class Operation(ABC):
    """One loss on inputs of a given shape; the loss is a scalar."""

    name: str
    sizes: ClassVar[dict[str, int]]  # letters of a shape, and what they are where not given
    axis: ClassVar[str]  # the letter that plots have on their x axis
    sweeps: ClassVar[dict[str, tuple[dict[str, int], ...]]]  # "cpu", "cuda", "smoke"

    @abstractmethod
    def inputs(
        self, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int
    ) -> Inputs: ...

    @abstractmethod
    def loss(self, backend: str) -> Loss:
        """The loss through the public function, by one of its backends."""

    @abstractmethod
    def losses(self, backend: str) -> Loss:
        """Likewise, of each row or map by itself."""

    @abstractmethod
    def definition(self) -> Loss:
        """The reference backend called directly: what `torch.compile` is given."""

    @abstractmethod
    def plain(self) -> Loss:
        """The loss as a user of PyTorch writes it."""

    @abstractmethod
    def forward_work(self, shape: Shape, element: int) -> Work: ...

    @abstractmethod
    def backward_work(self, shape: Shape, element: int) -> Work: ...

    # What a prediction of the Triton kernels' time counts by.

    @abstractmethod
    def tiny(self) -> dict[str, int]:
        """A shape that costs nothing but the host's time."""

    def counted_shape(self, shape: Shape) -> Shape:
        """A shape whose calls make the same launches, as small as there is."""
        return self.tiny()

    def further_launches(self, shape: Shape) -> int:
        """Launches of a call beyond those of `counted_shape`."""
        return 0

    @abstractmethod
    def units(self, shape: Shape) -> dict[str, float]:
        """Units of work by the calls of `kernel_costs.csv` that have the same costs for each."""

    @abstractmethod
    def moved(self, shape: Shape, element: int) -> float:
        """Bytes to and from memory, of what each kernel is given and leaves, once.

        What a kernel reads again it mostly finds in the last cache.
        """

    def work(self, direction: str, shape: Shape, dtype: torch.dtype) -> Work:
        forward = self.forward_work(shape, dtype.itemsize)
        backward = self.backward_work(shape, dtype.itemsize)
        return {"forward": forward, "backward": backward, "both": forward + backward}[direction]

    def shape(self, text: str) -> dict[str, int]:
        """`B=2,T=1024` with the letters that are not given at their usual sizes."""
        shape = dict(self.sizes)
        for part in text.replace(" ", "").split(","):
            letter, equals, number = part.partition("=")
            if letter not in self.sizes or not equals or not number.isdecimal() or number == "0":
                raise InputError(
                    f"--shapes: {part!r} of {self.name}: expected LETTER=NUMBER with a letter of "
                    f"{', '.join(self.sizes)}"
                )
            shape[letter] = int(number)
        return shape

    def sweep(self, name: str) -> list[dict[str, int]]:
        return [dict(self.sizes) | changes for changes in self.sweeps[name]]


def describe(shape: Shape) -> str:
    return ",".join(f"{letter}={size}" for letter, size in shape.items())


def learned(inputs: Inputs) -> list[Tensor]:
    return [t for t in inputs.values() if isinstance(t, Tensor) and t.requires_grad]


def random_tensor(
    *size: int, generator: torch.Generator, dtype: torch.dtype, learned: bool = False
) -> Tensor:
    tensor = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float32)
    return tensor.to(dtype).requires_grad_(learned)
