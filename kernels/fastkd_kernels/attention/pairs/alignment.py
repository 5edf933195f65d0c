"""Plans the alignment of head against head: the flash-style form, which holds no map."""

from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import pair_tile, precision, score_operand
from fastkd_kernels.attention.mixing.launch import Settings
from fastkd_kernels.attention.mixing.merge import merge_step
from fastkd_kernels.attention.numerics import FIELDS, STATISTICS
from fastkd_kernels.attention.pairs.forward import pair_fwd
from fastkd_kernels.attention.pairs.key_gradient import pair_key_bwd
from fastkd_kernels.attention.pairs.query_gradient import pair_query_bwd
from fastkd_kernels.attention.query_key.request import Layout, Shape, Side
from fastkd_kernels.attention.sums import Sums
from fastkd_kernels.common import ceil_div, stride_unit
from fastkd_kernels.launching import Step, play, step

NAMES = ("student_query", "student_key", "teacher_query", "teacher_key")


class Request(NamedTuple):
    """What a call is planned by: student (B, N, T, Ds) against teacher (B, N, T, Dt)."""

    student: tuple[Layout, Layout]
    teacher: tuple[Layout, Layout]
    lengths: tuple[bool, bool]  # whether there are lengths of queries, of keys
    settings: Settings
    reduce: float  # what the sum of all losses is multiplied by; 0: losses stay apart
    device: torch.device


class PairAlignment:
    """The launches of a call and the memory they need, by name; head n with head n."""

    def __init__(self, request: Request) -> None:
        self.request, self.settings = request, request.settings
        self.sides = (
            Side("student", *request.student, self.settings.student_scale),
            Side("teacher", *request.teacher, self.settings.teacher_scale),
        )
        student, teacher = self.sides
        self.batch, self.heads, self.queries, _ = student.query.shape
        self.keys = student.key.shape[2]
        dtypes = student.query.dtype, teacher.query.dtype
        self.precision = precision(dtypes[0])
        self.tile = pair_tile(max(self.queries, self.keys), max(student.size, teacher.size), dtypes)
        self.by_map = self.settings.normalization == "map"
        self.mixture = self.settings.normalization == "mixture"
        self.groups = 1 if self.by_map else self.queries
        self.forward_steps = self._forward()
        self.backward_steps = self._backward()

    def forward(self, tensors: dict[str, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, or losses (B, N); logs and statistics, as `memory` has them)."""
        memory = {name: self._empty(*shape) for name, shape in self.memory.items()}
        play(self.forward_steps, {**tensors, **memory})
        return memory["total"], memory["logs"], memory["statistics"]

    def backward(self, tensors: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """Gradients of the student's queries and keys, in their dtype.

        tensors: those of the call, "logs" and "statistics" of its forward, and "upstream", (B, N)
        or one number, as the losses were
        """
        layouts = self.request.student
        query, key = (common.empty(each.shape, each.dtype, self.request.device) for each in layouts)
        memory = {"query_gradient": query, "key_gradient": key}
        if not self.mixture:
            memory["delta"] = self._empty(self.batch, self.heads, self.queries)
        play(self.backward_steps, {**tensors, **memory})
        return query, key

    def _empty(self, *shape: int) -> Tensor:
        return common.empty(shape, torch.float32, self.request.device)

    @cached_property
    def memory(self) -> dict[str, Shape]:
        """Shapes of what the forward allocates."""
        batch, heads = self.batch, self.heads
        found: dict[str, Shape] = {
            "loss": (batch, heads, self.groups),
            "logs": (batch, heads, 5, self.queries),
            "statistics": (batch, STATISTICS.value, heads, 0 if self.mixture else self.groups),
            "total": () if self.request.reduce else (batch, heads),
        }
        if self.by_map:
            found["partials"] = batch, self.queries, FIELDS.value, heads
        return found

    def _forward(self) -> tuple[Step, ...]:
        by_row = None if self.by_map or self.mixture else "statistics"
        first = step(
            pair_fwd,
            self.batch * self.heads * ceil_div(self.queries, self.tile.edge),
            self._tensors
            | {
                "logs": "logs",
                "statistics": by_row,
                "partials": "partials" if self.by_map else None,
                "loss": None if self.by_map else "loss",
            },
            self._scalars,
            self._constants,
            self.tile.launch.options,
        )
        reduce = self.request.reduce
        # Of losses that stay apart each head is a group of its own.
        groups = (self.batch * self.heads, self.groups, 1)
        last = Sums(groups, reduce).step()
        if not self.by_map:
            return first, last
        return first, merge_step(self.batch, self.queries, self.heads, 0), last

    def _backward(self) -> tuple[Step, ...]:
        known = {
            "logs": "logs",
            "statistics": None if self.mixture else "statistics",
            "upstream": "upstream",
            "delta": None if self.mixture else "delta",
        }
        scalars = self._scalars | {
            "statistic_rows": 0 if self.mixture else self.groups,
            "upstream_step": int(self.request.reduce == 0),
            "upstream_factor": self.request.reduce or 1.0,
        }
        constants = self._constants | {
            "PRODUCT_OPERAND": self.precision.operand,
            "PRECISION": self.precision.dot,
        }
        row_blocks = ceil_div(self.queries, self.tile.edge)
        key_blocks = ceil_div(self.keys, self.tile.edge)
        key_heads = self.request.student[1].shape[1]
        return (
            step(
                pair_query_bwd,
                self.batch * self.heads * row_blocks,
                self._tensors | known | {"gradient": "query_gradient"},
                scalars,
                constants,
                self.tile.query_launch.options,
            ),
            step(
                pair_key_bwd,
                self.batch * key_heads * key_blocks,
                self._tensors | known | {"gradient": "key_gradient"},
                scalars,
                constants | {"BLOCK_Q": self.tile.key_rows},
                self.tile.launch.options,
            ),
        )

    @property
    def _tensors(self) -> dict[str, str | None]:
        queries, keys = self.request.lengths
        return {name: name for name in NAMES} | {
            "query_lengths": "query_lengths" if queries else None,
            "key_lengths": "key_lengths" if keys else None,
        }

    @cached_property
    def _unit(self) -> int:
        return stride_unit(*(length for side in self.sides for length in side.lengths))

    @property
    def _scalars(self) -> dict[str, int | float]:
        scalars: dict[str, int | float] = {
            "heads": self.heads,
            "queries": self.queries,
            "keys": self.keys,
            "inverse_temperature": 1 / self.settings.temperature,
        }
        for side in self.sides:
            scalars |= side.strides(self._unit, f"{side.name}_") | {
                f"{side.name}_scale": side.scale,
                f"{side.name}_group": side.group,
                f"{side.name}_units": side.size // self._unit,
            }
        return scalars

    @property
    def _constants(self) -> dict[str, object]:
        student, teacher = self.sides
        return {
            "MIXTURE": self.mixture,
            "CAUSAL": self.settings.causal,
            "INCLUDE": self.settings.include,
            "UNIT": self._unit,
            "CONTIGUOUS": student.contiguous and teacher.contiguous,
            "STUDENT_OPERAND": score_operand(student.query.dtype),
            "TEACHER_OPERAND": score_operand(teacher.query.dtype),
            "BLOCK_Q": self.tile.edge,
            "BLOCK_K": self.tile.edge,
            "SIZE": self.tile.size,
            "BLOCK_D": self.tile.part,
        }


@lru_cache(maxsize=256)
def planned(request: Request) -> PairAlignment:
    return PairAlignment(request)
