"""Buffers of one walk."""

import torch
from torch import Tensor

from fastkd.backends.tokens.torch.numerics import rounded


class Scratch:
    """Buffers (rows, V) by name, made when first asked for."""

    def __init__(
        self,
        rows: int,
        vocabulary: int,
        inside: torch.dtype,
        product: torch.dtype,
        device: torch.device,
    ) -> None:
        """`inside`: the type of the losses; `product`: of the matrix products."""
        self.shape, self.device = (rows, vocabulary), device
        self.inside, self.product = inside, product
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int | None = None) -> Tensor:
        """The same columns, all where not said, each time a name is asked for."""
        return self._take(name, rows, self.inside, columns)

    def low(self, rows: int) -> Tensor | None:
        """For products of another type than `inside`, a few more rows where that is faster; None
        where they have the same."""
        if self.product == self.inside:
            return None
        return self._take("low", rounded(rows, self.device), self.product, None)

    def _take(self, name: str, rows: int, dtype: torch.dtype, columns: int | None) -> Tensor:
        if name not in self.buffers:
            shape = self.shape[0], self.shape[1] if columns is None else columns
            self.buffers[name] = torch.empty(shape, dtype=dtype, device=self.device)
        return self.buffers[name][:rows]
