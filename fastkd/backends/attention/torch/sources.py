"""Where the maps of one side come from, block by block, and where their gradients go."""

from collections.abc import Sequence

import torch
from fastkd_kernels.once import early_dtype
from torch import Tensor

from fastkd.backends.attention.precision import operand_dtype
from fastkd.backends.attention.torch.plan import Block, Unit

Part = tuple[slice, Tensor]  # heads, and their tensor for the current unit


class Workspace:
    """Named buffers that are kept from block to block; their content is never relied on."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        size = 1
        for extent in shape:
            size *= extent
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self.buffers.pop(name, None)
            buffer = self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size].view(shape)


def paired(
    query: Sequence[Tensor], key: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Layers such that the heads of each query layer belong to the key layer of the same place."""
    heads = sum(layer.shape[1] for layer in query)
    key_heads = sum(layer.shape[1] for layer in key)
    if len(query) == len(key) and all(
        q.shape[1] * key_heads == k.shape[1] * heads for q, k in zip(query, key, strict=True)
    ):
        return tuple(query), tuple(key)
    return (torch.cat(tuple(query), 1),), (torch.cat(tuple(key), 1),)


class Attention:
    """Maps softmax(scale · query @ keyᵀ) of one side, whose queries and keys are layers."""

    def __init__(
        self,
        name: str,
        query: Sequence[Tensor],
        key: Sequence[Tensor],
        scale: float,
        workspace: Workspace,
        autocast: torch.dtype | None,
    ) -> None:
        self.name = name
        self.query_heads = [layer.shape[1] for layer in query]
        self.key_heads = [layer.shape[1] for layer in key]
        self.query, self.key = paired(query, key)
        self.scale = scale
        self.workspace = workspace
        self.autocast = autocast
        self.count = sum(layer.shape[1] for layer in self.query)
        self.row_size = self.count * self.query[0].shape[3]  # numbers in a row of queries
        self.queries: list[Part] = []
        self.keys: list[Part] = []

    @property
    def plain(self) -> bool:
        """Whether queries and keys enter products in the dtype they are held in."""
        return all(
            layer.dtype == operand_dtype(layer, self.autocast) == self.workspace.dtype
            for layer in (*self.query, *self.key)
        )

    def open(self, unit: Unit) -> None:
        """Take up a unit's queries and keys: as they lie where that is possible, else copied."""
        layers = (*self.query, *self.key)
        self.as_they_lie = (
            unit.contiguous
            and not unit.ragged
            and self.plain
            and (len(unit.sentences) == 1 or (len(layers) == 2 and all(map(joins, layers))))
        )
        self._take_up(unit)

    def copy(self, unit: Unit, multiple: int) -> None:
        """Take up copies of a unit's queries and keys, heads padded with zeros to such a size."""
        self.as_they_lie = False
        self._take_up(unit, multiple)

    def _take_up(self, unit: Unit, multiple: int = 1) -> None:
        self.queries = self._parts("query", self.query, unit, unit.rows, multiple)
        self.keys = self._parts("key", self.key, unit, unit.keys, multiple)
        if unit.ragged:
            self._clear_padding(unit)

    def _parts(
        self, what: str, layers: Sequence[Tensor], unit: Unit, length: int, multiple: int
    ) -> list[Part]:
        if self.as_they_lie:
            parts = [pick(layer, unit)[:, :, :length] for layer in layers]
        else:
            parts = [self._copy(what, layers, unit, length, multiple)]
        start = 0
        result = []
        for part in parts:
            stop = start + part.shape[1]
            result.append((slice(start, stop), part))
            start = stop
        return result

    def _copy(
        self, what: str, layers: Sequence[Tensor], unit: Unit, length: int, multiple: int
    ) -> Tensor:
        heads = sum(layer.shape[1] for layer in layers)
        sentences, size = len(unit.sentences), layers[0].shape[3]
        full = -(-size // multiple) * multiple
        copy = self.workspace.take(f"{self.name} {what}", sentences, heads, length, full)
        copy[..., size:].zero_()
        start = 0
        for layer in layers:
            part = pick(layer[:, :, :length], unit).to(operand_dtype(layer, self.autocast))
            copy[:, start : start + layer.shape[1], :, :size].copy_(part)
            start += layer.shape[1]
        return copy

    def _clear_padding(self, unit: Unit) -> None:
        """A NaN there would reach others through 0 · NaN."""
        for parts, real in ((self.queries, unit.real_rows), (self.keys, unit.real_keys)):
            if real is None:
                continue
            for _, part in parts:
                inside = torch.arange(part.shape[2], device=part.device) < real[:, None]
                part.masked_fill_(~inside[:, None, :, None], 0)

    def scores(self, block: Block, out: Tensor) -> None:
        """scale · query @ keyᵀ of a block; out (sentences, maps, rows, keys)."""
        for (heads, query), (_, key) in zip(self.queries, self.keys, strict=True):
            left, right = self._operands(block, query, key)
            part = out[:, heads].view(-1, left.shape[1], block.keys)
            torch.baddbmm(part, left, right.mT, beta=0, alpha=self.scale, out=part)

    def maps(self, block: Block, counted: Tensor | None) -> Tensor:
        """softmax of scores, (sentences, maps, rows, keys)."""
        sentences = self.queries[0][1].shape[0]
        maps = self.workspace.take(self.name, sentences, self.count, block.rows, block.keys)
        self.scores(block, maps)
        if counted is not None:
            attended = counted.clone()
            attended[..., 0] = True  # a softmax of nothing is NaN
            maps.masked_fill_(~attended, -torch.inf)
        return torch.softmax(maps, -1, out=maps)

    def _operands(self, block: Block, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(sentences · key heads, group · rows, size) and (sentences · key heads, keys, size)."""
        sentences, _, _, size = query.shape
        query = query[:, :, block.start : block.stop]
        key = key[:, :, : block.keys]
        grouped = query.reshape(sentences * key.shape[1], -1, size)
        return grouped, key.reshape(-1, block.keys, size)


class LearnedAttention(Attention):
    """The student's, with the gradients of its queries and keys."""

    def start_gradients(self) -> None:
        self.query_gradients = [early_zeros(layer) for layer in self.query]
        self.key_gradients = [early_zeros(layer) for layer in self.key]

    def gradients(self) -> list[Tensor]:
        """Of queries, then keys, cut in layers as the caller's were."""
        return [
            *_cut(self.query_gradients, self.query_heads),
            *_cut(self.key_gradients, self.key_heads),
        ]

    def open_gradients(self, unit: Unit) -> None:
        """Where the current unit's gradients are added up: in place, or where inputs were copied,
        in buffers of the inside dtype."""
        gradients = (*self.query_gradients, *self.key_gradients)
        self.in_place = self.as_they_lie and (
            len(unit.sentences) == 1 or all(map(joins, gradients))
        )
        self.unit_query = self._totals("query", self.queries, self.query_gradients, unit)
        self.unit_key = self._totals("key", self.keys, self.key_gradients, unit)

    def _totals(
        self, what: str, parts: list[Part], gradients: list[Tensor], unit: Unit
    ) -> list[Tensor]:
        if self.in_place:
            length = parts[0][1].shape[2]
            return [pick(gradient, unit)[:, :, :length] for gradient in gradients]
        take = self.workspace.take
        return [take(f"{what} gradient {n}", *p.shape).zero_() for n, (_, p) in enumerate(parts)]

    def add_gradients(self, block: Block, maps: Tensor, gradient: Tensor) -> None:
        """From the gradient of the maps, (sentences, maps, rows, keys), which is overwritten."""
        gradient.sub_(torch.linalg.vecdot(maps, gradient)[..., None]).mul_(maps)
        self.add_score_gradients(block, gradient)

    def add_score_gradients(self, block: Block, gradient: Tensor) -> None:
        """From the gradient of the scores, (sentences, maps, rows, keys)."""
        for n, ((heads, query), (_, key)) in enumerate(zip(self.queries, self.keys, strict=True)):
            left, right = self._operands(block, query, key)
            part = gradient[:, heads].view(-1, left.shape[1], block.keys)
            out = self.unit_query[n][:, :, block.start : block.stop]
            if query.shape[1] == key.shape[1]:
                rows = out.view(-1, *out.shape[2:])
                torch.baddbmm(rows, part, right, beta=0, alpha=self.scale, out=rows)
            else:
                torch.mul(torch.bmm(part, right).view(out.shape), self.scale, out=out)
            total = self.unit_key[n][:, :, : block.keys]
            total = total.view(-1, *total.shape[2:])
            torch.baddbmm(total, part.mT, left, beta=1, alpha=self.scale, out=total)

    def close_gradients(self, unit: Unit) -> None:
        if self.in_place:
            return
        for parts, gradients in (
            (self.unit_query, self.query_gradients),
            (self.unit_key, self.key_gradients),
        ):
            joined = parts[0] if len(parts) < len(gradients) else None
            start = 0
            for n, gradient in enumerate(gradients):
                heads = gradient.shape[1]
                part = parts[n] if joined is None else joined[:, start : start + heads]
                put(gradient[:, :, : part.shape[2]], unit, part[..., : gradient.shape[3]])
                start += heads


def early_zeros(layer: Tensor) -> Tensor:
    return torch.zeros_like(layer, dtype=early_dtype(layer.dtype))


def _cut(gradients: list[Tensor], heads: list[int]) -> Sequence[Tensor]:
    return gradients if len(gradients) == len(heads) else gradients[0].split(heads, 1)


def joins(layer: Tensor) -> bool:
    """Whether sentences and heads are one dimension in memory."""
    return layer.stride(0) == layer.shape[1] * layer.stride(1) and layer.stride(3) == 1


def pick(tensor: Tensor, unit: Unit) -> Tensor:
    """A unit's sentences: a view where they follow each other."""
    if unit.contiguous:
        return tensor[unit.sentences[0] : unit.sentences[-1] + 1]
    return tensor.index_select(0, _index(unit, tensor.device))


def put(tensor: Tensor, unit: Unit, part: Tensor) -> None:
    """Write a unit's sentences."""
    if unit.contiguous:
        tensor[unit.sentences[0] : unit.sentences[-1] + 1].copy_(part)
    else:
        tensor.index_copy_(0, _index(unit, tensor.device), part.to(tensor.dtype))


def _index(unit: Unit, device: torch.device) -> Tensor:
    return torch.tensor(unit.sentences).to(device, non_blocking=True)
