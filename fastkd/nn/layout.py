"""Where the tokens of a right-padded batch lie, and how layers walk over them.

Position-wise parts of a model (norms, projections, feed-forward) see one row per token, only
attention sees sentences. On a CPU the rows are the real tokens alone, so padding costs nothing
outside attention; elsewhere they are all cells of the batch, and rows are a view.
"""

from functools import cached_property

import torch
from torch import Tensor


class Layout:
    """The cells of a batch (B, T) that hold tokens: the first `lengths[b]` of sentence b.

    lengths: (B,) integers on the CPU, from 1 to T; read here, so no device is waited for
    packed: rows are the real tokens only; None chooses it for a padded batch on a CPU
    """

    def __init__(
        self, lengths: Tensor, time: int, device: torch.device, packed: bool | None = None
    ) -> None:
        shortest, longest = (int(bound) for bound in torch.aminmax(lengths))
        if shortest < 1 or longest > time:
            raise ValueError(f"lengths must be from 1 to {time}, found {shortest} to {longest}")
        self.lengths = lengths
        self.batch = lengths.shape[0]
        self.time = time
        self.device = device
        self.padded = shortest < time
        self.packed = self.padded and (device.type == "cpu" if packed is None else packed)

    @cached_property
    def mask(self) -> Tensor:
        """True where there is a token: (B, T)."""
        lengths = self.lengths.to(self.device, non_blocking=True)
        return torch.arange(self.time, device=self.device) < lengths[:, None]

    @cached_property
    def key_mask(self) -> Tensor | None:
        """The mask as scaled-dot-product attention takes it, (B, 1, 1, T); None: all are tokens."""
        return self.mask[:, None, None, :] if self.padded else None

    @cached_property
    def cells(self) -> Tensor:
        """The cell of each row in the flattened batch, where packed: (N,)."""
        cpu_mask = torch.arange(self.time) < self.lengths[:, None]
        return cpu_mask.flatten().nonzero().squeeze(1).to(self.device, non_blocking=True)

    def rows(self, batch: Tensor) -> Tensor:
        """(B, T, *) to one row a token (N, *)."""
        flat = batch.flatten(0, 1)
        return _TakeRows.apply(flat, self.cells) if self.packed else flat

    def pad(self, rows: Tensor) -> Tensor:
        """(N, *) to (B, T, *): zeros where there is no token if packed."""
        if self.packed:
            rows = _PlaceRows.apply(rows, self.cells, self.batch * self.time)
        return rows.unflatten(0, (self.batch, self.time))

    def positions(self, table: Tensor) -> Tensor:
        """The row of `table` (positions, width) for the position of each token: (N, width)."""
        table = table[: self.time]
        if self.packed:
            return table.index_select(0, self.cells % self.time)
        return table.repeat(self.batch, 1)


def _place(rows: Tensor, cells: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, cells, rows)


class _TakeRows(torch.autograd.Function):
    """flat[cells] for cells that do not repeat: the gradient is a copy, not an addition."""

    @staticmethod
    def forward(ctx, flat: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.count = flat.shape[0]
        return flat.index_select(0, cells)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient,) = gradients
        (cells,) = ctx.saved_tensors
        return _PlaceRows.apply(gradient, cells, ctx.count), None


class _PlaceRows(torch.autograd.Function):
    """The inverse: zeros of `count` rows with `rows` at `cells`."""

    @staticmethod
    def forward(ctx, rows: Tensor, cells: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(cells)
        return _place(rows, cells, count)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient,) = gradients
        (cells,) = ctx.saved_tensors
        return _TakeRows.apply(gradient, cells), None, None
