"""Runs the chunks of the query-key form: the loss and, in the same walk, its gradients."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import (
    Launch,
    mix_tile,
    precision,
    probability_tile,
    product_tile,
    score_operand,
)
from fastkd_kernels.attention.mixing.launch import MapView, Mixing, Settings
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.plan import SLOTS, Chunk, make_plan, scratch_bytes
from fastkd_kernels.attention.query_key.factors import factors_fwd
from fastkd_kernels.attention.query_key.probabilities import probabilities_fwd
from fastkd_kernels.attention.query_key.score_gradient import score_gradient_bwd
from fastkd_kernels.common import ceil_div, stride_unit

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Side:
    """The student's or the teacher's queries and keys, and the scratch of its maps."""

    query: Tensor
    key: Tensor
    scale: float
    maps: Tensor  # (sentences · N · rows · pitch,)
    block_max: Tensor | None  # (sentences · N · rows · key blocks,), then the factors
    block_sum: Tensor | None

    @cached_property
    def heads(self) -> int:
        return self.query.shape[1]

    @cached_property
    def group(self) -> int:
        return self.heads // self.key.shape[1]

    @cached_property
    def size(self) -> int:
        return self.query.shape[3]

    @cached_property
    def unit(self) -> int:
        return stride_unit(*self.query.stride()[:3], *self.key.stride()[:3], self.size)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        return tuple(
            stride
            for tensor in (self.query, self.key)
            for stride in (*(s // self.unit for s in tensor.stride()[:3]), tensor.stride(3))
        )

    @cached_property
    def contiguous(self) -> bool:
        return self.query.stride(3) == 1 and self.key.stride(3) == 1

    def view(self, rows: int, pitch: int) -> MapView:
        strides = (self.heads * rows * pitch, rows * pitch, pitch, 1)
        return MapView(self.maps, strides, pitch, self.block_max)


class QueryKeyAlignment:
    """One call: its plan, its scratch and its results."""

    def __init__(
        self,
        student: tuple[Tensor, Tensor],
        teacher: tuple[Tensor, Tensor],
        weight: Tensor,
        query_lengths: Tensor | None,
        key_lengths: Tensor | None,
        upstream: Tensor | None,
        settings: Settings,
        gradient_dtype: torch.dtype,
    ) -> None:
        """upstream: (B, Nt), or None for ones; gradient_dtype: of queries and keys."""
        self.gradient_dtype = gradient_dtype
        batch, student_maps, self.queries, _ = student[0].shape
        teacher_maps, self.keys = teacher[0].shape[1], student[1].shape[2]
        self.batch, self.device = batch, student[0].device
        self.upstream, self.settings = upstream, settings
        self.precision = precision(student[0].dtype)
        scratch = self.precision.scratch
        tile = mix_tile(self.keys, self.precision)
        self.whole = tile.keys >= self.keys
        # Programs that share student maps must not write over what the others read.
        self.in_place = self.whole and tile.students >= student_maps
        self.plan = plan = make_plan(
            batch,
            student_maps,
            teacher_maps,
            self.queries,
            self.keys,
            self.whole,
            self.in_place,
            scratch.itemsize,
            scratch_bytes(self.device),
        )
        segments = plan.segments
        self.mixing = Mixing(
            settings=settings,
            precision=self.precision,
            tile=tile,
            weight=weight,
            query_lengths=query_lengths,
            key_lengths=key_lengths,
            student_maps=student_maps,
            teacher_maps=teacher_maps,
            queries=self.queries,
            keys=self.keys,
            key_block=plan.key_block,
            key_blocks=plan.key_blocks,
            segments=segments,
            segment_keys=plan.segment_keys,
            rows_each=max(1, ceil_div(plan.sentences * plan.rows * segments, SLOTS)),
            wide=False,
            bounded=True,
        )
        self.student = self._side(*student, settings.student_scale)
        self.teacher = self._side(*teacher, settings.teacher_scale)

    def run(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(loss of every group of cells (B, Nt, ...), query, key and weight gradient)."""
        self._allocate()
        for group in self.plan.groups:
            if self.settings.normalization == "map":
                self._whole_maps(group)
            else:
                for chunk in group:
                    self._rows(chunk)
        weight_gradient = None if self.slots is None else self.slots.sum(0)
        return self.loss, self.query_gradient, self.key_gradient, weight_gradient

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return common.empty(shape, dtype, self.device)

    def _side(self, query: Tensor, key: Tensor, scale: float) -> Side:
        plan = self.plan
        cells = plan.sentences * query.shape[1] * plan.rows
        maps = self._empty(cells * plan.pitch, dtype=self.precision.scratch)
        block_max = self._empty(cells * plan.key_blocks) if not plan.whole else None
        block_sum = self._empty(cells * plan.key_blocks) if not plan.whole else None
        return Side(query, key, scale, maps, block_max, block_sum)

    def _allocate(self) -> None:
        plan, mixing, normalization = self.plan, self.mixing, self.settings.normalization
        teacher_maps, segments = mixing.teacher_maps, mixing.segments
        self.parts, self.partials = segments, None
        groups = (self.queries,) if normalization == "row" else (self.queries, segments)
        rows = plan.sentences * plan.rows
        if normalization == "map":
            first = plan.groups[0]
            self.parts = sum(mixing.programs(chunk) // chunk.sentences for chunk in first)
            groups, rows = (1,), plan.sentences
        if normalization == "map" or (normalization == "row" and segments > 1):
            self.partials = self._empty(rows * self.parts * 8 * teacher_maps)
        self.statistics = self._empty(rows * STATISTICS.value * teacher_maps)
        self.loss = self._empty(self.batch, teacher_maps, *groups)
        rows = plan.sentences * plan.rows * mixing.student_maps
        self.slots, self.started = None, False
        if self.settings.weight_gradient:
            programs = max(mixing.programs(chunk) for group in plan.groups for chunk in group)
            self.slots = self._empty(programs, teacher_maps, mixing.student_maps)
        self.query_gradient = self.key_gradient = self.key_sum = self.scores = self.delta = None
        if self.settings.gradient:
            self._allocate_gradients(rows)

    def _allocate_gradients(self, rows: int) -> None:
        query, key = self.student.query, self.student.key
        self.query_gradient = self._empty(*query.shape, dtype=self.gradient_dtype)
        self.key_gradient = self._empty(*key.shape, dtype=self.gradient_dtype)
        self.scores = self.student.maps
        if not self.in_place:
            self.scores = self._empty(self.student.maps.numel(), dtype=self.precision.scratch)
        if not self.whole:
            self.delta = self._empty(rows * self.mixing.segments)
        if len(self.plan.groups[0]) > 1:
            self.key_sum = self._empty(self.plan.sentences, *key.shape[1:])

    def _rows(self, chunk: Chunk) -> None:
        settings = self.settings
        wanted = settings.gradient or settings.weight_gradient
        self._probabilities(chunk)
        if settings.normalization == "mixture" or (self.whole and wanted):
            self._gradient(chunk, None, self.loss)
        else:
            self._statistics(chunk, 0)
            if self.partials is not None:
                self._merge(chunk)
            if wanted:
                self._gradient(chunk, self.statistics, None)
        if settings.gradient:
            self._products(chunk)

    def _whole_maps(self, group: tuple[Chunk, ...]) -> None:
        settings = self.settings
        part = 0
        for chunk in group:
            self._probabilities(chunk)
            self._statistics(chunk, part)
            part += self.mixing.programs(chunk) // chunk.sentences
        self._merge(group[0])
        if not (settings.gradient or settings.weight_gradient):
            return
        for chunk in group:
            if len(group) > 1:
                self._probabilities(chunk)
            self._gradient(chunk, self.statistics, None)
            if settings.gradient:
                self._products(chunk)

    def _views(self, chunk: Chunk) -> tuple[MapView, MapView]:
        pitch = self.plan.pitch
        return self.student.view(chunk.rows, pitch), self.teacher.view(chunk.rows, pitch)

    def _statistics(self, chunk: Chunk, part: int) -> None:
        self.mixing.statistics(
            chunk,
            *self._views(chunk),
            self.partials,
            None if self.partials is not None else self.statistics,
            None if self.partials is not None else self.loss,
            self.parts,
            part,
        )

    def _merge(self, chunk: Chunk) -> None:
        self.mixing.merge(chunk, self.partials, self.statistics, self.loss, self.parts)

    def _gradient(self, chunk: Chunk, statistics: Tensor | None, loss: Tensor | None) -> None:
        student, teacher = self._views(chunk)
        self.mixing.gradient(
            chunk,
            student,
            teacher,
            statistics,
            self.upstream,
            loss,
            None if self.scores is None else MapView(self.scores, student.strides, self.plan.pitch),
            self.delta,
            self.slots,
            self.started,
            to_maps=False,
        )
        self.started = True

    def _probabilities(self, chunk: Chunk) -> None:
        plan, settings = self.plan, self.settings
        for side in (self.teacher, self.student):
            dtype = side.query.dtype
            tile = probability_tile(chunk.rows, plan.key_block, side.size, dtype)
            row_blocks = ceil_div(chunk.rows, tile.rows)
            probabilities_fwd[(chunk.sentences * side.heads * row_blocks * plan.key_blocks,)](
                side.query,
                side.key,
                None if settings.include else self.mixing.query_lengths,
                self.mixing.key_lengths,
                side.maps,
                side.block_max,
                side.block_sum,
                side.scale * LOG2_E,
                *side.strides,
                side.heads,
                side.group,
                side.size // side.unit,
                chunk.first_sentence,
                chunk.first_row,
                chunk.rows,
                self.queries,
                self.keys,
                plan.pitch // 16,
                plan.key_blocks,
                row_blocks,
                CAUSAL=settings.causal,
                CONTIGUOUS=side.contiguous,
                UNIT=side.unit,
                OPERAND=score_operand(dtype),
                PRECISION="ieee",
                BLOCK_Q=tile.rows,
                BLOCK_K=tile.keys,
                BLOCK_D=tile.size,
                **tile.launch.options,
            )
        if not plan.whole:
            rows = [
                chunk.sentences * side.heads * chunk.rows for side in (self.student, self.teacher)
            ]
            factors_fwd[(sum(ceil_div(count, 32) for count in rows),)](
                self.student.block_max,
                self.student.block_sum,
                self.teacher.block_max,
                self.teacher.block_sum,
                *rows,
                plan.key_blocks,
                BLOCK_R=32,
                BLOCK_B=16,
                **Launch(1).options,
            )

    def _products(self, chunk: Chunk) -> None:
        plan, side, mixing = self.plan, self.student, self.mixing
        size = side.size
        tile = product_tile(chunk.rows, self.keys, size, self.precision)
        size_blocks = ceil_div(size, tile.size)
        row_blocks = ceil_div(chunk.rows, tile.rows)
        column_blocks = ceil_div(self.keys, tile.keys)
        query_programs = chunk.sentences * side.heads * row_blocks * size_blocks
        key_programs = chunk.sentences * side.key.shape[1] * column_blocks * size_blocks
        score_gradient_bwd[(query_programs + key_programs,)](
            side.query,
            side.key,
            None if self.settings.include else mixing.query_lengths,
            mixing.key_lengths,
            self.scores,
            None if self.whole else side.maps,
            None if self.whole else side.block_max,
            self.delta,
            self.query_gradient,
            self.key_gradient,
            self.key_sum,
            side.scale,
            *side.strides,
            side.heads,
            side.group,
            size // side.unit,
            chunk.first_sentence,
            chunk.first_row,
            chunk.rows,
            self.queries,
            self.keys,
            plan.pitch // 16,
            plan.key_blocks,
            mixing.segments,
            row_blocks,
            column_blocks,
            size_blocks,
            query_programs,
            int(chunk.first),
            int(chunk.last),
            CAUSAL=self.settings.causal,
            CONTIGUOUS=side.contiguous,
            UNIT=side.unit,
            OPERAND=self.precision.operand,
            PRECISION=self.precision.dot,
            KEY_BLOCK=plan.key_block,
            BLOCK_Q=tile.rows,
            BLOCK_K=tile.keys,
            BLOCK_D=tile.size,
            **tile.launch.options,
        )
