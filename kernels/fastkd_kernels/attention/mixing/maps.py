"""The maps form: the loss of maps that the caller holds, and its gradients."""

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import mix_tile, precision
from fastkd_kernels.attention.mixing.launch import MapView, Mixing, Settings
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.plan import SEGMENTS, SLOTS, Chunk
from fastkd_kernels.common import ceil_div


class MapAlignment:
    """One call over student (B, Ns, Tq, Tk) and teacher (B, Nt, Tq, Tk)."""

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None,
        query_lengths: Tensor | None,
        key_lengths: Tensor | None,
        settings: Settings,
    ) -> None:
        batch, student_maps, queries, keys = student.shape
        self.student, self.settings = student, settings
        self.views = tuple(MapView(maps, maps.stride(), keys) for maps in (student, teacher))
        self.chunk = Chunk(0, batch, 0, queries, True, True)
        chosen = precision(student.dtype)
        tile = mix_tile(keys, chosen)
        self.whole = tile.keys >= keys
        blocks = ceil_div(keys, tile.keys)
        segment_blocks = ceil_div(blocks, 1 if self.whole else SEGMENTS)
        segments = ceil_div(blocks, segment_blocks)
        self.mixing = Mixing(
            settings=settings,
            precision=chosen,
            tile=tile,
            weight=weight,
            query_lengths=query_lengths,
            key_lengths=key_lengths,
            student_maps=student_maps,
            teacher_maps=teacher.shape[1],
            queries=queries,
            keys=keys,
            key_block=tile.keys,
            key_blocks=1,
            segments=segments,
            segment_keys=segment_blocks * tile.keys,
            rows_each=max(1, ceil_div(batch * queries * segments, SLOTS)),
            wide=any(view.strides[1] * view.maps.shape[1] >= 1 << 31 for view in self.views),
            bounded=False,
        )

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return common.empty(shape, dtype, self.student.device)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """(loss of every group of cells (B, Nt, ...), statistics for the gradient)."""
        chunk, mixing, normalization = self.chunk, self.mixing, self.settings.normalization
        batch, teacher_maps = chunk.sentences, mixing.teacher_maps
        if normalization == "mixture":
            loss = self._empty(batch, teacher_maps, chunk.rows, mixing.segments)
            self._gradient(None, None, loss, None, None)
            return loss, None
        rows = chunk.rows if normalization == "row" else 1
        loss = self._empty(batch, teacher_maps, rows)
        statistics = self._empty(batch, STATISTICS.value, teacher_maps, rows)
        if normalization == "row" and mixing.segments == 1:
            mixing.statistics(chunk, *self.views, None, statistics, loss, 1, 0)
            return loss, statistics
        parts = mixing.segments
        if normalization == "map":
            parts *= mixing.row_groups(chunk)
        partials = self._empty(batch * rows, parts, 8, teacher_maps)
        mixing.statistics(chunk, *self.views, partials, None, None, parts, 0)
        mixing.merge(chunk, partials, statistics, loss, parts)
        return loss, statistics

    def backward(
        self, statistics: Tensor | None, upstream: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(gradient of the student's maps, of the weight), where the settings want them."""
        mixing, gradient, slots = self.mixing, None, None
        if self.settings.gradient:
            # Cells that no query attends to are written by no program.
            gradient = torch.zeros(
                self.student.shape, dtype=self.student.dtype, device=self.student.device
            )
        if self.settings.weight_gradient:
            programs = mixing.programs(self.chunk)
            slots = self._empty(programs, mixing.teacher_maps, mixing.student_maps)
        self._gradient(statistics, upstream, None, gradient, slots)
        return gradient, None if slots is None else slots.sum(0)

    def _gradient(
        self,
        statistics: Tensor | None,
        upstream: Tensor | None,
        loss: Tensor | None,
        gradient: Tensor | None,
        slots: Tensor | None,
    ) -> None:
        self.mixing.gradient(
            self.chunk,
            *self.views,
            statistics,
            upstream,
            loss,
            None if gradient is None else MapView(gradient, gradient.stride(), self.mixing.keys),
            None,
            slots,
            False,
            to_maps=True,
        )
