"""Where the tokens of a right-padded batch lie, and how layers walk over them.

Position-wise parts of a model (norms, projections, feed-forward) see one row per token, only
attention sees sentences. On a CPU the rows are the real tokens alone, so padding costs nothing
outside attention; elsewhere they are all cells of the batch, and rows are a view.

A few spare rows at the end bring packed rows to a multiple of `ROWS`: matrix products on a CPU are
compiled for each shape, which takes longer than to compute them, and so shapes come again.
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd import watching

ROWS = 32


class Layout:
    """The cells of a batch (B, T) that hold tokens: the first `lengths[b]` of sentence b.

    lengths: (B,) integers on the CPU, from 1 to T; read here, so no device is waited for
    packed: rows are the real tokens and then spare ones, copies of a cell without a token, which
        losses must leave out like padding; None chooses it for a padded batch on a CPU
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
        if packed is None:
            packed = watching.pretended().packed
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
    def cells(self) -> "_Cells":
        """Where rows and cells lie in each other, where packed."""
        real = (torch.arange(self.time) < self.lengths[:, None]).flatten()
        tokens, pads = real.nonzero().squeeze(1), (~real).nonzero().squeeze(1)
        spare = pads[:1].expand(-tokens.shape[0] % ROWS)
        places = (torch.cat([tokens, spare]), pads, real.cumsum(0) - 1)
        return _Cells(*(place.to(self.device, non_blocking=True) for place in places))

    def rows(self, batch: Tensor) -> Tensor:
        """(B, T, *) to one row a token, and spare ones: (N, *)."""
        flat = batch.flatten(0, 1)
        if not self.packed:
            return flat
        result: Tensor = _TakeRows.apply(flat, self.cells)  # type: ignore[no-untyped-call]
        return result

    def pad(self, rows: Tensor) -> Tensor:
        """(N, *) to (B, T, *): zeros where there is no token if packed."""
        if self.packed:
            rows = _PlaceRows.apply(rows, self.cells)  # type: ignore[no-untyped-call]
        batch: Tensor = rows.unflatten(0, (self.batch, self.time))
        return batch

    def positions(self, table: Tensor) -> Tensor:
        """The row of `table` (positions, width) for the position of each token: (N, width)."""
        table = table[: self.time]
        if self.packed:
            return table.index_select(0, self.cells.source % self.time)
        return table.repeat(self.batch, 1)


class _Cells(NamedTuple):
    """Of a flattened batch of B·T cells."""

    source: Tensor  # (N,) the cell of each row
    pads: Tensor  # the cells without a token
    row: Tensor  # (B·T,) the row of each cell; of a cell without a token, that of one before it


def _take(flat: Tensor, cells: _Cells) -> Tensor:
    return flat.index_select(0, cells.source)


def _place(rows: Tensor, cells: _Cells) -> Tensor:
    # Copying something and clearing the few pads is faster than clearing everything and copying.
    return rows.index_select(0, cells.row).index_fill_(0, cells.pads, 0)


class _TakeRows(torch.autograd.Function):
    """The rows of a flattened batch. Cells of tokens do not repeat, so the gradient is no sum but a
    copy; spare rows have none."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, cells: _Cells) -> Tensor:
        ctx.cells = cells
        return _take(flat, cells)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        back: Tensor = _PlaceRows.apply(gradients[0], ctx.cells)  # type: ignore[no-untyped-call]
        return back, None


class _PlaceRows(torch.autograd.Function):
    """The flattened batch of rows, zeros where there is no token."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cells: _Cells) -> Tensor:
        ctx.cells = cells
        return _place(rows, cells)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        back: Tensor = _TakeRows.apply(gradients[0], ctx.cells)  # type: ignore[no-untyped-call]
        return back, None
