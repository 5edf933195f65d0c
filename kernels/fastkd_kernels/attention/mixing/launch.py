"""Launches of the kernels that mix maps, for maps in a scratch and for maps of the caller's."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastkd_kernels.attention.config import MixTile, Precision, head_units
from fastkd_kernels.attention.mixing.gradient import mix_gradient_bwd
from fastkd_kernels.attention.mixing.statistics import mix_statistics_fwd
from fastkd_kernels.attention.plan import Chunk
from fastkd_kernels.common import INTERPRETED, ceil_div, stride_unit
from fastkd_kernels.launching import Step, step

LEAST_TEMPERATURE = 1 / 8  # down to it exp(a), a <= 1 / temperature, is summed as it stands


class Settings(NamedTuple):
    """What the kernels are asked for, beside the tensors."""

    student_scale: float
    teacher_scale: float
    causal: bool
    normalization: str
    temperature: float
    include: bool
    gradient: bool  # of queries and keys, or of the maps
    weight_gradient: bool
    softmax: bool = False  # the weight is a softmax, which its gradient goes back through


@dataclass(frozen=True)
class MapView:
    """Maps of a chunk, (sentences, N, rows, keys) by strides, under the name a call has them."""

    name: str
    strides: tuple[int, ...]
    width: int  # keys that a row has in memory

    def in_units(self, side: str, unit: int) -> dict[str, int]:
        sentence, head, row, key = self.strides
        return {
            f"{side}_sentence": sentence // unit,
            f"{side}_head": head // unit,
            f"{side}_row": row // unit,
            f"{side}_key": key,
        }

    @property
    def unit(self) -> int:
        return stride_unit(*self.strides[:3], self.width)


@dataclass(frozen=True)
class Mixing:
    """What the launches of one call have in common."""

    settings: Settings
    precision: Precision
    tile: MixTile
    weighted: bool
    lengths: dict[str, str | None]  # names of the lengths' tensors
    student_maps: int
    teacher_maps: int
    queries: int
    keys: int
    rows_each: int
    scratch: bool  # whether `probabilities_fwd` wrote the maps
    wide: bool  # whether offsets within a sentence exceed int32

    @property
    def head_parts(self) -> int:
        """Programs that share the student maps of the same rows."""
        return ceil_div(self.student_maps, self.tile.students) if self.weighted else 1

    @property
    def head_unit(self) -> int:
        """How many numbers of a row of the weight are read at once."""
        units = head_units(self.precision, self.scratch)
        return 1 if self.student_maps % units[-1] else units[-1]

    @property
    def held(self) -> bool:
        """Whether a program holds its part of the weight and of its gradient in registers."""
        crowded = self.precision.exact and self.head_parts > 1
        return self.tile.teachers >= self.teacher_maps and not crowded

    @property
    def whole(self) -> bool:
        """Whether a program holds a row in one block of keys."""
        return self.tile.keys >= self.keys

    def row_groups(self, chunk: Chunk) -> int:
        return ceil_div(chunk.rows, self.rows_each)

    def programs(self, chunk: Chunk) -> int:
        return chunk.sentences * self.row_groups(chunk)

    def statistics(
        self, chunk: Chunk, student: MapView, teacher: MapView, parts: int, part: int
    ) -> Step:
        """Fills "partials", (sentences, parts, FIELDS, Nt)."""
        units = student.unit, teacher.unit
        return step(
            mix_statistics_fwd,
            self.programs(chunk),
            {
                "student": student.name,
                "teacher": teacher.name,
                "weight": "weight" if self.weighted else None,
                "partials": "partials",
                **self.lengths,
            },
            {
                **student.in_units("student", units[0]),
                **teacher.in_units("teacher", units[1]),
                **self._extents(chunk, student, teacher, units),
                "parts": parts,
                "part": part,
            },
            self._constants(units, (student, teacher)),
            self.tile.launch.options,
        )

    def gradient(
        self,
        chunk: Chunk,
        student: MapView,
        teacher: MapView,
        out: MapView | None,
        *,
        known: bool,  # statistics are given
        measure: bool,  # the loss is wanted
        upstream: bool,
        reduce: float = 0.0,  # of one upstream gradient for all: what it is multiplied by
        to_maps: bool,
        weight_gradient: bool,
        accumulate: bool = False,
        parts: int = 1,
        part: int = 0,
    ) -> Step:
        # One program measures a row; several share the student maps that get a gradient.
        head_parts = self.head_parts if out is not None or weight_gradient else 1
        views = (student, teacher) if out is None else (student, teacher, out)
        unit = student.unit if out is None else min(student.unit, out.unit)
        units = unit, teacher.unit
        mixture = self.settings.normalization == "mixture"
        own_rows = measure and not mixture and not (self.whole and not to_maps)
        per_row = self.settings.normalization == "row"
        strides = out or MapView("", (0, 0, 0, 1), 0)
        return step(
            mix_gradient_bwd,
            self.programs(chunk) * head_parts,
            {
                "student": student.name,
                "teacher": teacher.name,
                "weight": "weight" if self.weighted else None,
                "statistics": "statistics" if (known or own_rows) and not mixture else None,
                "upstream": "upstream" if upstream else None,
                "loss": "loss" if measure else None,
                "out": None if out is None else out.name,
                "weight_slots": "weight_slots" if weight_gradient else None,
                **self.lengths,
            },
            {
                **student.in_units("student", unit),
                **teacher.in_units("teacher", units[1]),
                **strides.in_units("out", unit),
                **self._extents(chunk, student, teacher, units),
                "statistic_rows": chunk.rows if per_row else 1,
                "upstream_step": int(reduce == 0),
                "upstream_factor": reduce or 1.0,
                "accumulate": int(accumulate),
                "head_parts": head_parts,
                "parts": parts,
                "part": part,
            },
            {
                **self._constants(units, views),
                "MIXTURE": mixture,
                "NVIDIA": not INTERPRETED and torch.version.hip is None,
                "TO_MAPS": to_maps,
                "LONG": out is not None and not to_maps and not self.whole,
                "ONE_J": self.held,
            },
            self.tile.gradient_launch.options,
        )

    def _constants(self, units: tuple[int, int], views: tuple[MapView, ...]) -> dict:
        return {
            "CAUSAL": self.settings.causal,
            "INCLUDE": self.settings.include,
            "STUDENT_UNIT": units[0],
            "TEACHER_UNIT": units[1],
            "HEAD_UNIT": self.head_unit,
            "CONTIGUOUS": all(view.strides[3] == 1 for view in views),
            "WIDE": self.wide,
            "SCRATCH": self.scratch,
            "OPERAND": self.precision.operand,
            "PRECISION": self.precision.dot,
            "ONE_H": self.head_parts == 1,
            "BLOCK_H": self.tile.students,
            "BLOCK_J": self.tile.teachers,
            "BLOCK_K": self.tile.keys,
        }

    def _extents(
        self, chunk: Chunk, student: MapView, teacher: MapView, units: tuple[int, int]
    ) -> dict[str, int | float]:
        bounded = self.scratch and self.settings.temperature >= LEAST_TEMPERATURE
        return {
            "student_width": student.width // units[0],
            "teacher_width": teacher.width // units[1],
            "student_maps": self.student_maps,
            "teacher_maps": self.teacher_maps,
            "queries": self.queries,
            "keys": self.keys,
            "first_sentence": chunk.first_sentence,
            "first_row": chunk.first_row,
            "rows": chunk.rows,
            "row_groups": self.row_groups(chunk),
            "rows_each": self.rows_each,
            "inverse_temperature": 1 / self.settings.temperature,
            "sharp": int(not bounded),
        }
