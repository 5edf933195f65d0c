"""The matrix products of an output projection and of its gradients, chunk by chunk."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.backends.tokens.torch.positions import Part

# Entries of the weight that one product reads on a CPU: a slice stays in the cache while the
# library packs it, which is a large part of the work where rows are few.
SLICE = 2**19


class Gradients(Protocol):
    """Sums over chunks in the type inside; None for what is not needed."""

    def add(
        self,
        part: Part,
        hidden: Tensor,
        gradient: Tensor,
        scale: Tensor | None,
        low: Tensor | None,
    ) -> None:
        """One chunk: `gradient` (R, V) by its logits, which came from `hidden` (R, D).

        scale: (R,) that each row is still to be multiplied with
        """

    def results(self) -> list[Tensor | None]:
        """Of hidden states, weight and bias."""


class Projecting(Protocol):
    """logits = hidden weightᵀ + bias"""

    def logits(self, hidden: Tensor, out: Tensor, low: Tensor | None) -> Tensor:
        """Of `hidden` (R, D) into `out` (R, V), through `low` (≥ R, V) where products go there."""

    def rounds(self, chunks: int) -> int:
        """How often it is to be used, where this process has so many chunks of positions."""

    def gradients(
        self, positions: int, inside: torch.dtype, needed: Sequence[bool], share: float
    ) -> Gradients:
        """Of hidden states, weight and bias, where needed, times `share`: 1 unless products are of
        type `inside`, by a weight that this process has whole."""


class Projection:
    """logits = hidden weightᵀ + bias; weight (V, D), bias (V,), products of type `product`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, product: torch.dtype) -> None:
        self.weight = weight.detach().to(product)
        self.bias = None if bias is None else bias.detach().to(product)
        vocabulary, width = weight.shape
        step = max(SLICE // width, 1) if weight.device.type == "cpu" else vocabulary
        self.slices = [slice(start, start + step) for start in range(0, vocabulary, step)]

    def logits(self, hidden: Tensor, out: Tensor, low: Tensor | None) -> Tensor:
        rows, result = hidden.shape[0], out if low is None else low
        hidden = filled(hidden.to(self.weight.dtype), result.shape[0])
        for part in [slice(None)] if low is None else self.slices:
            weight, columns = self.weight[part].t(), result[:, part]
            if self.bias is None:
                torch.mm(hidden, weight, out=columns)
            else:
                torch.addmm(self.bias[part], hidden, weight, out=columns)
        return out if low is None else out.copy_(low[:rows])

    def rounds(self, chunks: int) -> int:
        return chunks

    def gradients(
        self, positions: int, inside: torch.dtype, needed: Sequence[bool], share: float
    ) -> Gradients:
        return ProjectionGradients(self, positions, inside, needed, share)


class ProjectionGradients:
    def __init__(
        self,
        projection: Projection,
        positions: int,
        inside: torch.dtype,
        needed: Sequence[bool],
        share: float,
    ) -> None:
        weight, self.share = projection.weight, share
        vocabulary, width = weight.shape
        self.projection, self.started = projection, False
        zeros: dict[str, Any] = {"dtype": inside, "device": weight.device}
        self.hidden = torch.zeros(positions, width, **zeros) if needed[0] else None
        self.weight = torch.empty(vocabulary, width, **zeros) if needed[1] else None
        self.bias = torch.zeros(vocabulary, **zeros) if needed[2] else None

    def add(
        self,
        part: Part,
        hidden: Tensor,
        gradient: Tensor,
        scale: Tensor | None,
        low: Tensor | None,
    ) -> None:
        rows = hidden.shape[0]
        gradient = by_logits(gradient, scale, self.bias, low)
        if self.hidden is not None:
            product = torch.mm(gradient, self.projection.weight)
            if self.share != 1:
                product.mul_(self.share)
            self.hidden[part] = product[:rows].to(self.hidden.dtype)
        if self.weight is not None:
            self._add_weight(filled(hidden.to(gradient.dtype), gradient.shape[0]), gradient)
        self.started = True

    def _add_weight(self, hidden: Tensor, gradient: Tensor) -> None:
        assert self.weight is not None
        if gradient.dtype == self.weight.dtype:
            # With beta=0 what the memory holds is not read.
            starts = int(self.started)
            self.weight.addmm_(gradient.t(), hidden, beta=starts, alpha=self.share)
            return
        for part in self.projection.slices:
            product = torch.mm(gradient[:, part].t(), hidden)
            if self.started:
                self.weight[part] += product
            else:
                self.weight[part] = product

    def results(self) -> list[Tensor | None]:
        if self.weight is not None and not self.started:
            self.weight.zero_()
        if self.bias is not None and self.share != 1:
            self.bias.mul_(self.share)
        return [self.hidden, self.weight, self.bias]


def filled(hidden: Tensor, rows: int) -> Tensor:
    """With rows of zeros up to so many."""
    missing = rows - hidden.shape[0]
    return F.pad(hidden, (0, 0, 0, missing)) if missing else hidden


def by_logits(
    gradient: Tensor, scale: Tensor | None, bias: Tensor | None, low: Tensor | None
) -> Tensor:
    """A chunk's gradient (R, V) as products take it, in `low` where they go there; adds to `bias`.

    scale: (R,) that each row is still to be multiplied with, in place
    """
    if scale is not None:
        gradient.mul_(scale.unsqueeze(-1))
    if bias is not None:
        bias += gradient.sum(0)
    if low is None:
        return gradient
    rows = gradient.shape[0]
    low[:rows].copy_(gradient)
    low[rows:].zero_()
    return low
