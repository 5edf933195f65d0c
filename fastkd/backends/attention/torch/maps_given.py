"""Maps that the caller holds, block by block, and where their gradients go."""

from collections.abc import Sequence

from torch import Tensor

from fastkd.backends.attention.torch.plan import Block, Unit
from fastkd.backends.attention.torch.sources import Workspace, early_zeros, pick, put


class GivenMaps:
    """One side's maps, as layers (B, heads, Tq, Tk)."""

    def __init__(self, name: str, layers: Sequence[Tensor], workspace: Workspace) -> None:
        self.name = name
        self.layers = tuple(layers)
        self.workspace = workspace
        self.count = sum(layer.shape[1] for layer in self.layers)
        self.row_size = 0

    def open(self, unit: Unit) -> None:
        self.unit = unit

    def maps(self, block: Block, counted: Tensor | None) -> Tensor:
        shape = len(self.unit.sentences), self.count, block.rows, block.keys
        maps = self.workspace.take(self.name, *shape)
        start = 0
        for layer in self.layers:
            part = pick(layer[:, :, block.start : block.stop, : block.keys], self.unit)
            maps[:, start : start + layer.shape[1]].copy_(part)
            start += layer.shape[1]
        return maps if counted is None else maps.masked_fill_(~counted, 0)


class LearnedMaps(GivenMaps):
    """The student's, with their gradients."""

    def start_gradients(self) -> None:
        self.map_gradients = [early_zeros(layer) for layer in self.layers]

    def gradients(self) -> list[Tensor]:
        return self.map_gradients

    def open_gradients(self, unit: Unit) -> None:
        pass

    def close_gradients(self, unit: Unit) -> None:
        pass

    def add_gradients(self, block: Block, maps: Tensor, gradient: Tensor) -> None:
        start = 0
        for layer in self.map_gradients:
            part = gradient[:, start : start + layer.shape[1]]
            put(layer[:, :, block.start : block.stop, : block.keys], self.unit, part)
            start += layer.shape[1]
