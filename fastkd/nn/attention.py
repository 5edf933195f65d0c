"""Multi-head attention on PyTorch's scaled-dot-product attention, with its projections fused."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.nn.layout import Layout

_INPUT_GAIN = 2**-0.5  # of the query, key and value projections at the start


class TapList:
    """Query and key of each layer so far, (B, heads, T, head size) each.

    No `list`: FSDP2 hands a layer copies of the lists among its arguments.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._layers)

    def append(self, query_and_key: tuple[Tensor, Tensor]) -> None:
        self._layers.append(query_and_key)


Taps = TapList | None  # None where nobody asks


class SelfAttention(nn.Module):
    """Attention of a sequence to itself: one matrix product makes queries, keys and values.

    `qkv.weight` holds the rows of the queries, then of the keys, then of the values.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        initialise(self.qkv, blocks=3, gain=_INPUT_GAIN)
        initialise(self.output)

    def forward(self, rows: Tensor, layout: Layout, causal: bool, taps: Taps = None) -> Tensor:
        """(N, width) to the same; adds the queries and keys it used to `taps`.

        A causal layer needs no padding mask: padding lies at the end, after every token.
        """
        projected = self.qkv(rows)
        query, key, value = _split(layout.pad(exact(projected)), 3, self.heads)
        if taps is not None:
            taps.append((query, key))
        mask = None if causal else layout.key_mask
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, mask, dropout, causal)
        result: Tensor = self.output(layout.rows(mixed.to(projected.dtype)))
        return result


class CrossAttention(nn.Module):
    """Attention of the decoder to the encoder: one matrix product makes keys and values.

    `key_value.weight` holds the rows of the keys, then of the values.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        initialise(self.query, gain=_INPUT_GAIN)
        initialise(self.key_value, blocks=2, gain=_INPUT_GAIN)
        initialise(self.output)

    def forward(
        self,
        rows: Tensor,
        layout: Layout,
        source_rows: Tensor,
        source_layout: Layout,
        taps: Taps = None,
    ) -> Tensor:
        """Target rows (N, width) and source rows (M, width) to (N, width)."""
        projected = self.query(rows)
        (query,) = _split(layout.pad(exact(projected)), 1, self.heads)
        key, value = self.project(source_rows, source_layout)
        if taps is not None:
            taps.append((query, key))
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, source_layout.key_mask, dropout)
        result: Tensor = self.output(layout.rows(mixed.to(projected.dtype)))
        return result

    def project(self, source_rows: Tensor, source_layout: Layout) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, (B, heads, Ts, head size) each."""
        projected = exact(self.key_value(source_rows))
        key, value = _split(source_layout.pad(projected), 2, self.heads)
        return key, value


def _split(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, T, parts · width) to `parts` views (B, heads, T, head size)."""
    views = projected.unflatten(2, (parts, heads, -1)).unbind(2)
    return tuple(view.transpose(1, 2) for view in views)


def exact(projected: Tensor) -> Tensor:
    """In float32 on a CPU, where attention in half precision takes three times as long."""
    if projected.device.type == "cpu" and projected.dtype in (torch.bfloat16, torch.float16):
        return projected.float()
    return projected


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Scaled-dot-product attention in the type of its inputs: (B, heads, T, D) to (B, T, width)."""
    if not torch.is_autocast_enabled(query.device.type):  # what a step of decoding need not pay
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
        return mixed.transpose(1, 2).flatten(2)
    with torch.autocast(query.device.type, enabled=False):
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
    return mixed.transpose(1, 2).flatten(2)


def initialise(linear: nn.Linear, *, blocks: int = 1, gain: float = 1.0) -> None:
    """Xavier-uniform for each of the `blocks` matrices stacked in the weight; bias 0."""
    for block in linear.weight.chunk(blocks):
        nn.init.xavier_uniform_(block, gain)
    nn.init.zeros_(linear.bias)
