"""Plans the query-key form: the loss and, in the same walk over the chunks, its gradients."""

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import (
    HEAD_UNIT,
    HEADS,
    is_crowded,
    mix_tile,
    precision,
    probability_tile,
    product_tile,
    score_operand,
)
from fastkd_kernels.attention.mixing.launch import MapView, Mixing, Settings
from fastkd_kernels.attention.mixing.merge import merge_step
from fastkd_kernels.attention.numerics import FIELDS, STATISTICS
from fastkd_kernels.attention.plan import Chunk, make_plan, rows_of_program, scratch_bytes
from fastkd_kernels.attention.query_key.probabilities import probabilities_fwd
from fastkd_kernels.attention.query_key.request import Layout, Request, Shape, Side
from fastkd_kernels.attention.query_key.score_gradient import score_gradient_bwd
from fastkd_kernels.attention.sums import Sums
from fastkd_kernels.common import ceil_div, stride_unit
from fastkd_kernels.launching import Step, play, step

LOG2_E = 1.4426950408889634
LEAST_SCALE = 2.0**-126  # times any score, an exponent of which the power is 1; times −∞, −∞


class QueryKeyAlignment:
    """The launches of a call and the memory they need, by name."""

    def __init__(self, request: Request) -> None:
        self.request, self.settings = request, request.settings
        settings = request.settings
        self.student = Side("student", *request.student, settings.student_scale)
        self.teacher = Side("teacher", *request.teacher, settings.teacher_scale)
        self.batch, _, self.queries, _ = request.student[0].shape
        self.keys = request.student[1].shape[2]
        self.precision = precision(request.student[0].dtype)
        crowded = is_crowded(
            settings.normalization,
            self.teacher.heads <= HEADS,
            self.student.heads <= HEADS,
            self.student.heads % HEAD_UNIT == 0,
        )
        tile = mix_tile(self.keys, self.precision, crowded=crowded)
        # Programs that share student maps must not write over what the others read.
        self.in_place = tile.students >= self.student.heads
        copies = 1 if self.in_place or not settings.gradient else 2
        self.plan = make_plan(
            self.batch,
            self.student.heads * copies + self.teacher.heads,
            self.queries,
            self.keys,
            self.precision.scratch.itemsize,
            request.budget,
        )
        self.mixing = Mixing(
            settings=settings,
            precision=self.precision,
            tile=tile,
            weighted=True,
            lengths=self._lengths(every_query=False),
            student_maps=self.student.heads,
            teacher_maps=self.teacher.heads,
            queries=self.queries,
            keys=self.keys,
            rows_each=rows_of_program(self.plan.sentences * self.plan.rows),
            scratch=True,
            wide=False,
        )
        first = self.plan.groups[0]
        self.parts = sum(self.mixing.row_groups(chunk) for chunk in first)  # of a sentence
        self.slots = max(
            self.mixing.programs(chunk) for group in self.plan.groups for chunk in group
        )
        self.started = False
        self.steps: tuple[Step, ...] = tuple(self._steps())

    def run(self, tensors: dict[str, Tensor | None]) -> tuple[Tensor | None, ...]:
        """(loss, or losses (B, Nt); query, key and weight gradient) of a call's tensors."""
        device = self.request.device
        memory = {
            name: common.empty(shape, dtype, device) for name, (shape, dtype) in self.memory.items()
        }
        play(self.steps, {**tensors, **memory})
        names = ("total", "query_gradient", "key_gradient", "weight_gradient")
        return tuple(memory.get(name) for name in names)

    @cached_property
    def memory(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Shape and dtype of what a call allocates."""
        plan, settings, single = self.plan, self.settings, torch.float32
        students, teachers = self.student.heads, self.teacher.heads
        rows = plan.sentences * plan.rows
        by_map = settings.normalization == "map"
        found: dict[str, tuple[Shape, torch.dtype]] = {
            "student_maps": ((rows * students * plan.pitch,), self.precision.scratch),
            "teacher_maps": ((rows * teachers * plan.pitch,), self.precision.scratch),
            "loss": ((self.batch, 1 if by_map else self.parts, teachers), single),
            "total": (() if self.request.reduce else (self.batch, teachers), single),
        }
        statistics = STATISTICS.value * teachers
        if by_map:
            partials = plan.sentences * self.parts * FIELDS.value * teachers
            found["partials"] = (partials,), single
            found["statistics"] = (plan.sentences * statistics,), single
        elif settings.normalization != "map" and not self.mixing.whole:
            found["statistics"] = (rows * self.mixing.head_parts * statistics,), single
        if settings.weight_gradient:
            found["weight_slots"] = (self.slots, teachers, students), single
            found["weight_gradient"] = (teachers, students), single
        if settings.gradient:
            query, key = self.student.query.shape, self.student.key.shape
            found["query_gradient"] = query, self.request.gradient_dtype
            found["key_gradient"] = key, self.request.gradient_dtype
            if not self.in_place:
                found["scores"] = found["student_maps"]
            if len(plan.groups[0]) > 1:
                found["key_sum"] = (plan.sentences, *key[1:]), single
        return found

    def _lengths(self, every_query: bool) -> dict[str, str | None]:
        queries, keys = self.request.lengths
        return {
            "query_lengths": "query_lengths" if queries and not every_query else None,
            "key_lengths": "key_lengths" if keys else None,
        }

    def _steps(self) -> Iterator[Step]:
        settings = self.settings
        wanted = settings.gradient or settings.weight_gradient
        for group in self.plan.groups:
            last_group = group is self.plan.groups[-1]
            if settings.normalization == "map":
                yield from self._measured(group)
                if not wanted:
                    continue
            part = 0
            for chunk in group:
                if settings.normalization != "map" or len(group) > 1:
                    yield self._probabilities(chunk)
                yield self._gradient(chunk, part)
                part += self.mixing.row_groups(chunk)
                if settings.gradient:
                    yield self._products(chunk, last_group and chunk is group[-1])
        if not settings.gradient:
            yield self.sums.step()

    def _measured(self, group: tuple[Chunk, ...]) -> Iterator[Step]:
        """Statistics of whole maps."""
        part = 0
        for chunk in group:
            yield self._probabilities(chunk)
            yield self.mixing.statistics(chunk, *self._views(chunk), self.parts, part)
            part += self.mixing.row_groups(chunk)
        first = group[0]
        yield merge_step(first.sentences, self.parts, self.teacher.heads, first.first_sentence)

    def _views(self, chunk: Chunk) -> tuple[MapView, MapView]:
        pitch = self.plan.pitch
        return self.student.view(chunk.rows, pitch), self.teacher.view(chunk.rows, pitch)

    def _gradient(self, chunk: Chunk, part: int) -> Step:
        student, teacher = self._views(chunk)
        by_map = self.settings.normalization == "map"
        out = None
        if self.settings.gradient:
            name = student.name if self.in_place else "scores"
            out = MapView(name, student.strides, student.width)
        accumulate, self.started = self.started, True
        return self.mixing.gradient(
            chunk,
            student,
            teacher,
            out,
            known=by_map,
            measure=not by_map,
            upstream=self.request.upstream,
            to_maps=False,
            weight_gradient=self.settings.weight_gradient,
            accumulate=accumulate,
            parts=self.parts,
            part=part,
        )

    def _probabilities(self, chunk: Chunk) -> Step:
        sides = self.student, self.teacher
        unit = stride_unit(*(length for side in sides for length in side.lengths))
        tiles = [
            probability_tile(chunk.rows, self.keys, side.size, side.query.dtype) for side in sides
        ]
        row_blocks = ceil_div(chunk.rows, tiles[0].rows)
        programs = [chunk.sentences * side.heads * row_blocks for side in sides]
        names = ("student_query", "student_key", "teacher_query", "teacher_key")
        scalars = self._extents(chunk) | {"row_blocks": row_blocks, "student_programs": programs[0]}
        constants = {
            "WHOLE": tiles[0].keys >= self.keys,
            "CAUSAL": self.settings.causal,
            "CONTIGUOUS": all(side.contiguous for side in sides),
            "UNIT": unit,
            "BLOCK_Q": tiles[0].rows,
            "BLOCK_K": tiles[0].keys,
            "FAR": any(side.far for side in sides),
            "ONE_D": all(tile.size >= side.size for side, tile in zip(sides, tiles, strict=True)),
        }
        for side, tile in zip(sides, tiles, strict=True):
            scalars |= side.strides(unit, f"{side.name}_") | {
                f"{side.name}_scale": side.scale * LOG2_E or LEAST_SCALE,
                f"{side.name}_heads": side.heads,
                f"{side.name}_group": side.group,
                f"{side.name}_units": side.size // unit,
            }
            constants[f"{side.name.upper()}_OPERAND"] = score_operand(side.query.dtype)
            constants[f"{side.name.upper()}_D"] = tile.size
        tensors = {name: name for name in (*names, "student_maps", "teacher_maps")}
        return step(
            probabilities_fwd,
            sum(programs),
            tensors | self._lengths(every_query=self.settings.include),
            scalars,
            constants,
            tiles[0].launch.options,
        )

    def _extents(self, chunk: Chunk) -> dict[str, int | float]:
        return {
            "first_sentence": chunk.first_sentence,
            "first_row": chunk.first_row,
            "rows": chunk.rows,
            "queries": self.queries,
            "keys": self.keys,
            "pitch_units": self.plan.pitch // 16,
        }

    def _products(self, chunk: Chunk, last: bool) -> Step:
        """The gradients of queries and keys; with the last of them the sums over programs."""
        side = self.student
        unit = stride_unit(*side.lengths)
        tile = product_tile(chunk.rows, self.keys, side.size, self.precision)
        size_blocks = ceil_div(side.size, tile.size)
        row_blocks = ceil_div(chunk.rows, tile.rows)
        column_blocks = ceil_div(self.keys, tile.keys)
        query_programs = chunk.sentences * side.heads * row_blocks * size_blocks
        key_programs = chunk.sentences * side.key.shape[1] * column_blocks * size_blocks
        names = {
            "query": "student_query",
            "key": "student_key",
            "scores": "student_maps" if self.in_place else "scores",
            "query_gradient": "query_gradient",
            "key_gradient": "key_gradient",
            "key_sum": "key_sum" if len(self.plan.groups[0]) > 1 else None,
        }
        return step(
            score_gradient_bwd,
            query_programs + key_programs + (self.sums.programs if last else 0),
            names | self.sums.tensors | self._lengths(every_query=self.settings.include),
            {
                **side.strides(unit, ""),
                **self._extents(chunk),
                **self.sums.scalars,
                "scale": side.scale * (self.request.reduce or 1.0),
                "heads": side.heads,
                "group": side.group,
                "size_units": side.size // unit,
                "row_blocks": row_blocks,
                "column_blocks": column_blocks,
                "size_blocks": size_blocks,
                "query_programs": query_programs,
                "key_programs": key_programs,
                "first_chunk": int(chunk.first),
                "last_chunk": int(chunk.last),
            },
            {
                "CAUSAL": self.settings.causal,
                "CONTIGUOUS": side.contiguous,
                "UNIT": unit,
                "OPERAND": self.precision.operand,
                "PRECISION": self.precision.dot,
                "BLOCK_Q": tile.rows,
                "BLOCK_K": tile.keys,
                "BLOCK_D": tile.size,
                "FAR": side.far,
            },
            tile.launch.options,
        )

    @cached_property
    def sums(self) -> Sums:
        """The last sums: losses, and the slots of the weight's gradient."""
        teachers = self.teacher.heads
        parts = 1 if self.settings.normalization == "map" else self.parts
        return Sums(
            (self.batch, parts, teachers),
            self.request.reduce,
            (self.slots, teachers, self.student.heads) if self.settings.weight_gradient else None,
            self.settings.softmax,
        )


@lru_cache(maxsize=256)
def planned(request: Request) -> QueryKeyAlignment:
    return QueryKeyAlignment(request)


def align(
    tensors: Mapping[str, Tensor],
    optional: Mapping[str, Tensor | None],
    settings: Settings,
    reduce: float,
    gradient_dtype: torch.dtype,
) -> tuple[Tensor | None, ...]:
    """(loss, query, key and weight gradient).

    tensors: queries, keys and weight, optional: lengths and upstream, by the names of the
    operator's arguments.
    """
    query, key = tensors["student_query"], tensors["student_key"]
    request = Request(
        (Layout.of(query), Layout.of(key)),
        (Layout.of(tensors["teacher_query"]), Layout.of(tensors["teacher_key"])),
        (optional["query_lengths"] is not None, optional["key_lengths"] is not None),
        optional["upstream"] is not None,
        settings,
        reduce,
        gradient_dtype,
        query.device,
        scratch_bytes(query.device),
    )
    return planned(request).run({**tensors, **optional})
