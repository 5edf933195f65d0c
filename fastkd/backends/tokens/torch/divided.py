"""An output projection whose rows are divided over processes, of which only parts are ever here.

Each process sends its rows in its turn; they are used and forgotten, and what a chunk adds to their
gradient goes back, summed. All processes walk in step, however many positions each has.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastkd.backends.tokens.torch.positions import Part
from fastkd.backends.tokens.torch.products import (
    Gradients,
    Projecting,
    Projection,
    by_logits,
    filled,
)
from fastkd.functional.divided import Rows, is_divided


def projection_of(
    weight: Tensor, bias: Tensor | None, product: torch.dtype, vocabulary: int | None = None
) -> Projecting:
    """Of the first `vocabulary` rows, all where not said."""
    if is_divided(weight):
        return DividedProjection(Rows(weight, product), bias, product, vocabulary)
    return Projection(weight[:vocabulary], None if bias is None else bias[:vocabulary], product)


class DividedProjection:
    """As `products.Projection`; bias (V,) is whole.

    vocabulary: how many of the logits are wanted
    """

    def __init__(
        self, rows: Rows, bias: Tensor | None, product: torch.dtype, vocabulary: int | None = None
    ) -> None:
        self.rows, self.vocabulary = rows, vocabulary or rows.vocabulary
        self.bias = None if bias is None else bias.detach().to(product)

    def logits(self, hidden: Tensor, out: Tensor, low: Tensor | None) -> Tensor:
        rows, result = hidden.shape[0], out if low is None else low
        hidden = filled(hidden.to(self.rows.product), result.shape[0])
        for part, _, weight in self.rows.each():
            columns = slice(part.start, min(part.stop, self.vocabulary))
            if columns.start >= columns.stop:
                continue
            weight = weight[: columns.stop - columns.start].t()
            # Of columns of a matrix, of which some libraries would make a copy.
            if self.bias is None:
                torch.mm(hidden, weight, out=result[:, columns])
            else:
                torch.addmm(self.bias[columns], hidden, weight, out=result[:, columns])
        return out if low is None else out.copy_(low[:rows])

    def rounds(self, chunks: int) -> int:
        """The most that any process has."""
        found = torch.tensor(chunks, device=self.rows.local.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, self.rows.group)
        return max(chunks, int(found))

    def gradients(
        self, positions: int, inside: torch.dtype, needed: Sequence[bool], share: float
    ) -> Gradients:
        assert share == 1
        return DividedGradients(self.rows, positions, inside, needed)


class DividedGradients:
    """As `products.ProjectionGradients`, with this process's rows of the weight's."""

    def __init__(
        self, rows: Rows, positions: int, inside: torch.dtype, needed: Sequence[bool]
    ) -> None:
        zeros: dict[str, Any] = {"dtype": inside, "device": rows.local.device}
        self.rows, self.inside = rows, inside
        self.hidden = torch.zeros(positions, rows.width, **zeros) if needed[0] else None
        self.weight = torch.zeros(rows.local.shape, **zeros) if needed[1] else None
        self.bias = torch.zeros(rows.vocabulary, **zeros) if needed[2] else None

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
        hidden = filled(hidden.to(gradient.dtype), gradient.shape[0])
        by_hidden = None
        for columns, owner, weight in self.rows.each():
            mine = gradient[:, columns]
            if self.hidden is not None:
                product = torch.mm(mine, weight).to(self.inside)
                by_hidden = product if by_hidden is None else by_hidden.add_(product)
            if self.weight is not None:
                self._add_weight(torch.mm(mine.t(), hidden).to(self.inside), owner)
        if self.hidden is not None and by_hidden is not None:
            self.hidden[part] = by_hidden[:rows]

    def _add_weight(self, product: Tensor, owner: int) -> None:
        dist.reduce(product, group=self.rows.group, group_dst=owner)
        if owner == self.rows.mine:
            assert self.weight is not None
            self.weight += product

    def results(self) -> list[Tensor | None]:
        weight = None if self.weight is None else self.rows.whole(self.weight)
        return [self.hidden, weight, self.bias]


def check_same(upstream: Tensor, weight: Any) -> None:
    """Gradients were summed over the processes before they are multiplied with `upstream`."""
    ends = torch.stack([upstream, -upstream]).detach()
    mesh = weight.device_mesh
    for dimension in range(mesh.ndim):
        dist.all_reduce(ends, dist.ReduceOp.MAX, mesh.get_group(dimension))
    torch._assert_async(
        (ends[0] == -ends[1]) | ends.isnan().any(),  # which the loss shows, too
        "the gradient of a loss whose weight is divided over processes must be equal in all",
    )
