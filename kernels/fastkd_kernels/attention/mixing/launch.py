"""Launches the kernels that mix maps, for maps in a scratch and for maps of the caller's."""

from dataclasses import dataclass

from torch import Tensor

from fastkd_kernels.attention.config import Launch, MixTile, Precision
from fastkd_kernels.attention.mixing.gradient import mix_gradient_bwd
from fastkd_kernels.attention.mixing.merge import merge_statistics_fwd
from fastkd_kernels.attention.mixing.statistics import mix_statistics_fwd
from fastkd_kernels.attention.plan import Chunk
from fastkd_kernels.common import ceil_div, stride_unit

LEAST_TEMPERATURE = 1 / 8  # down to it exp(a), a <= 1 / temperature, is summed as it stands


@dataclass(frozen=True)
class Settings:
    """What the kernels are asked for, beside the tensors."""

    student_scale: float
    teacher_scale: float
    causal: bool
    normalization: str
    temperature: float
    include: bool
    gradient: bool  # of queries and keys, or of the maps
    weight_gradient: bool


@dataclass(frozen=True)
class MapView:
    """Maps of a chunk, (sentences, N, rows, keys) by strides."""

    maps: Tensor
    strides: tuple[int, int, int, int]
    width: int  # keys that a row has in memory
    factors: Tensor | None = None  # (sentences, N, rows, key blocks)


@dataclass(frozen=True)
class Mixing:
    """What the launches of one call have in common."""

    settings: Settings
    precision: Precision
    tile: MixTile
    weight: Tensor | None  # (Nt, Ns)
    query_lengths: Tensor | None
    key_lengths: Tensor | None
    student_maps: int
    teacher_maps: int
    queries: int
    keys: int
    key_block: int
    key_blocks: int
    segments: int
    segment_keys: int
    rows_each: int
    wide: bool  # whether offsets within a sentence exceed int32
    bounded: bool  # whether maps are known to lie in [0, 1]

    @property
    def head_parts(self) -> int:
        """Programs that share the student maps of the same rows."""
        if self.weight is None:
            return 1
        return ceil_div(self.student_maps, self.tile.students)

    @property
    def held(self) -> bool:
        """Whether a program holds its part of the weight and of its gradient in registers."""
        crowded = self.precision.exact and self.head_parts > 1
        return self.tile.teachers >= self.teacher_maps and not crowded

    def row_groups(self, chunk: Chunk) -> int:
        return ceil_div(chunk.rows, self.rows_each)

    def programs(self, chunk: Chunk) -> int:
        return chunk.sentences * self.row_groups(chunk) * self.segments

    def statistics(
        self,
        chunk: Chunk,
        student: MapView,
        teacher: MapView,
        partials: Tensor | None,
        statistics: Tensor | None,
        loss: Tensor | None,
        parts: int,
        part: int,
    ) -> None:
        student_unit, student_strides = _in_units(student)
        teacher_unit, teacher_strides = _in_units(teacher)
        tile = self.tile
        mix_statistics_fwd[(self.programs(chunk),)](
            student.maps,
            teacher.maps,
            self.weight,
            student.factors,
            teacher.factors,
            self.query_lengths,
            self.key_lengths,
            partials,
            statistics,
            loss,
            *student_strides,
            *teacher_strides,
            student.width // student_unit,
            teacher.width // teacher_unit,
            *self._extents(chunk),
            parts,
            part,
            PER_ROW=self.settings.normalization != "map",
            CAUSAL=self.settings.causal,
            INCLUDE=self.settings.include,
            STUDENT_UNIT=student_unit,
            TEACHER_UNIT=teacher_unit,
            CONTIGUOUS=student.strides[3] == 1 and teacher.strides[3] == 1,
            OPERAND=self.precision.operand,
            PRECISION=self.precision.dot,
            WIDE=self.wide,
            KEY_BLOCK=self.key_block,
            ONE_H=self.head_parts == 1,
            BLOCK_H=tile.students,
            BLOCK_J=tile.teachers,
            BLOCK_K=tile.keys,
            **tile.launch.options,
        )

    def merge(
        self,
        chunk: Chunk,
        partials: Tensor,
        statistics: Tensor,
        loss: Tensor,
        parts: int,
    ) -> None:
        by_row = self.settings.normalization == "row"
        groups = chunk.rows if by_row else 1  # in a sentence
        block_p, block_j = (16, 16) if by_row else (64, 16)
        merge_statistics_fwd[(chunk.sentences * groups * ceil_div(self.teacher_maps, block_j),)](
            partials,
            statistics,
            loss,
            parts,
            self.teacher_maps,
            groups,
            chunk.first_sentence,
            chunk.first_row if by_row else 0,
            self.queries if by_row else 1,
            BLOCK_P=block_p,
            BLOCK_J=block_j,
            **Launch(1 if by_row else 4).options,
        )

    def gradient(
        self,
        chunk: Chunk,
        student: MapView,
        teacher: MapView,
        statistics: Tensor | None,
        upstream: Tensor | None,
        loss: Tensor | None,
        out: MapView | None,
        delta: Tensor | None,
        weight_slots: Tensor | None,
        accumulate: bool,
        to_maps: bool,
    ) -> None:
        out_strides = (0, 0, 0, 0) if out is None else out.strides
        unit = stride_unit(*student.strides[:3], *out_strides[:3], student.width)
        _, student_strides = _in_units(student, unit)
        teacher_unit, teacher_strides = _in_units(teacher)
        last = (student.strides[3], teacher.strides[3], 1 if out is None else out.strides[3])
        tile = self.tile
        mix_gradient_bwd[(self.programs(chunk) * self.head_parts,)](
            student.maps,
            teacher.maps,
            self.weight,
            student.factors,
            teacher.factors,
            self.query_lengths,
            self.key_lengths,
            statistics,
            upstream,
            loss,
            None if out is None else out.maps,
            delta,
            weight_slots,
            *student_strides,
            *teacher_strides,
            *(stride // unit for stride in out_strides[:3]),
            out_strides[3],
            student.width // unit,
            teacher.width // teacher_unit,
            *self._extents(chunk),
            chunk.rows if self.settings.normalization == "row" else 1,
            int(accumulate),
            self.head_parts,
            MIXTURE=self.settings.normalization == "mixture",
            TO_MAPS=to_maps,
            CAUSAL=self.settings.causal,
            INCLUDE=self.settings.include,
            STUDENT_UNIT=unit,
            TEACHER_UNIT=teacher_unit,
            CONTIGUOUS=last == (1, 1, 1),
            OPERAND=self.precision.operand,
            PRECISION=self.precision.dot,
            WIDE=self.wide,
            KEY_BLOCK=self.key_block,
            ONE_H=self.head_parts == 1,
            ONE_J=self.held,
            BLOCK_H=tile.students,
            BLOCK_J=tile.teachers,
            BLOCK_K=tile.keys,
            **tile.launch.options,
        )

    def _extents(self, chunk: Chunk) -> tuple:
        return (
            self.student_maps,
            self.teacher_maps,
            self.queries,
            self.keys,
            chunk.first_sentence,
            chunk.first_row,
            chunk.rows,
            self.key_blocks,
            self.row_groups(chunk),
            self.rows_each,
            self.segments,
            self.segment_keys // 16,
            1 / self.settings.temperature,
            int(not self.bounded or self.settings.temperature < LEAST_TEMPERATURE),
        )


def _in_units(view: MapView, unit: int = 0) -> tuple[int, tuple[int, ...]]:
    """(unit, strides in it); the one along the keys stays as it is."""
    strides = view.strides
    unit = unit or stride_unit(*strides[:3], view.width)
    return unit, (*(stride // unit for stride in strides[:3]), strides[3])
