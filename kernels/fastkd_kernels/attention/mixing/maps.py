"""Plans the maps form: the loss of maps that the caller holds, and its gradients."""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import mix_tile, precision
from fastkd_kernels.attention.mixing.launch import MapView, Mixing, Settings
from fastkd_kernels.attention.mixing.merge import merge_step
from fastkd_kernels.attention.numerics import FIELDS, STATISTICS
from fastkd_kernels.attention.plan import Chunk, rows_of_program
from fastkd_kernels.attention.query_key.request import Layout, Shape
from fastkd_kernels.attention.sums import Sums
from fastkd_kernels.launching import Step, play


class Request(NamedTuple):
    """What a call is planned by: student (B, Ns, Tq, Tk), teacher (B, Nt, Tq, Tk)."""

    student: Layout
    teacher: Layout
    weighted: bool
    lengths: tuple[bool, bool]  # whether there are lengths of queries, of keys
    settings: Settings  # its gradients are those of the backward
    reduce: float  # what the sum of all losses is multiplied by; 0: losses stay apart
    device: torch.device


class MapAlignment:
    """The launches of a call and the memory they need, by name."""

    def __init__(self, request: Request) -> None:
        student, teacher = request.student, request.teacher
        batch, student_maps, queries, keys = student.shape
        teacher_maps = teacher.shape[1]
        queries_end, keys_end = request.lengths
        self.request, self.settings = request, request.settings
        self.views = (
            MapView("student_maps", student.strides, keys),
            MapView("teacher_maps", teacher.strides, keys),
        )
        self.chunk = Chunk(0, batch, 0, queries, True, True)
        # Maps that no weight multiplies are taken as they are: nothing of them is rounded.
        chosen = precision(student.dtype if request.weighted else torch.float32)
        self.mixing = Mixing(
            settings=self.settings,
            precision=chosen,
            tile=mix_tile(keys, chosen, scratch=False),
            weighted=request.weighted,
            lengths={
                "query_lengths": "query_lengths" if queries_end else None,
                "key_lengths": "key_lengths" if keys_end else None,
            },
            student_maps=student_maps,
            teacher_maps=teacher_maps,
            queries=queries,
            keys=keys,
            rows_each=rows_of_program(batch * queries),
            scratch=False,
            wide=any(side.strides[1] * side.shape[1] >= 1 << 31 for side in (student, teacher)),
        )
        self.by_map = self.settings.normalization == "map"
        self.forward_steps = self._forward()
        self.backward_steps = self._backward()

    def forward(self, tensors: Mapping[str, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """(loss, or losses (B, Nt); statistics for the gradient)."""
        memory = {name: self._empty(*shape) for name, shape in self.memory.items()}
        play(self.forward_steps, {**tensors, **memory})
        return memory["total"], memory.get("statistics")

    def backward(self, tensors: Mapping[str, Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """(gradient of the student's maps, of the weight), where the settings want them.

        tensors: those of the call, "statistics" of its forward, and "upstream", (B, Nt) or one
        number, as the losses were
        """
        student, memory = self.request.student, {}
        if self.settings.gradient:
            # Cells that no query attends to are written by no program.
            new = torch.zeros if self.sparse else common.empty
            memory["out"] = new(student.shape, dtype=student.dtype, device=self.request.device)
        if self.settings.weight_gradient:
            _, *shape = self.weight_slots
            memory["weight_slots"] = self._empty(*self.weight_slots)
            memory["weight_gradient"] = self._empty(*shape)
        play(self.backward_steps, {**tensors, **memory})
        return memory.get("out"), memory.get("weight_gradient")

    def _empty(self, *shape: int) -> Tensor:
        return common.empty(shape, torch.float32, self.request.device)

    @property
    def sparse(self) -> bool:
        """Whether some cells may not be attended to."""
        return self.settings.causal or any(self.request.lengths)

    @property
    def weight_slots(self) -> Shape:
        mixing = self.mixing
        return mixing.programs(self.chunk), mixing.teacher_maps, mixing.student_maps

    @cached_property
    def parts(self) -> int:
        """Of a sentence, each by a program of its own."""
        return self.mixing.row_groups(self.chunk)

    @cached_property
    def memory(self) -> dict[str, Shape]:
        """Shapes of what the forward allocates."""
        batch, teachers = self.chunk.sentences, self.mixing.teacher_maps
        found: dict[str, Shape] = {
            "loss": (batch, 1 if self.by_map else self.parts, teachers),
            "total": () if self.request.reduce else (batch, teachers),
        }
        if self.settings.normalization != "mixture":
            rows = 1 if self.by_map else self.chunk.rows
            found["statistics"] = batch, STATISTICS.value, teachers, rows
        if self.by_map:
            found["partials"] = batch, self.parts, FIELDS.value, teachers
        return found

    def _forward(self) -> tuple[Step, ...]:
        chunk, mixing = self.chunk, self.mixing
        last = Sums(self.memory["loss"], self.request.reduce).step()
        if self.by_map:
            return (
                mixing.statistics(chunk, *self.views, self.parts, 0),
                merge_step(chunk.sentences, self.parts, mixing.teacher_maps, 0),
                last,
            )
        measured = mixing.gradient(
            chunk, *self.views, None, known=False, measure=True, upstream=False, to_maps=True,
            weight_gradient=False, parts=self.parts,
        )  # fmt: skip
        return measured, last

    def _backward(self) -> tuple[Step, ...]:
        out = None
        if self.settings.gradient:
            _, heads, queries, keys = self.request.student.shape
            out = MapView("out", (heads * queries * keys, queries * keys, keys, 1), keys)
        changed = self.mixing.gradient(
            self.chunk, *self.views, out, known=True, measure=False, upstream=True,
            reduce=self.request.reduce, to_maps=True,
            weight_gradient=self.settings.weight_gradient,
        )  # fmt: skip
        if not self.settings.weight_gradient:
            return (changed,)
        return changed, Sums(None, 0.0, self.weight_slots, self.settings.softmax).step()


@lru_cache(maxsize=256)
def planned(request: Request) -> MapAlignment:
    return MapAlignment(request)
