"""The maps form: the loss of maps that the caller holds, and its gradients."""

import torch
from torch import Tensor

from fastkd_kernels import common
from fastkd_kernels.attention.config import mix_tile, precision
from fastkd_kernels.attention.mixing.launch import MapView, Mixing, Settings
from fastkd_kernels.attention.numerics import FIELDS, STATISTICS
from fastkd_kernels.attention.plan import SLOTS, Chunk
from fastkd_kernels.common import ceil_div
from fastkd_kernels.launching import play


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
        self.tensors = {
            "student_maps": student,
            "teacher_maps": teacher,
            "weight": weight,
            "query_lengths": query_lengths,
            "key_lengths": key_lengths,
        }
        self.views = (
            MapView.of("student_maps", student),
            MapView.of("teacher_maps", teacher),
        )
        self.chunk = Chunk(0, batch, 0, queries, True, True)
        # Maps that no weight multiplies are taken as they are: nothing of them is rounded.
        chosen = precision(torch.float32 if weight is None else student.dtype)
        self.mixing = Mixing(
            settings=settings,
            precision=chosen,
            tile=mix_tile(keys, teacher.shape[1], chosen, scratch=False),
            weighted=weight is not None,
            lengths={
                "query_lengths": None if query_lengths is None else "query_lengths",
                "key_lengths": None if key_lengths is None else "key_lengths",
            },
            student_maps=student_maps,
            teacher_maps=teacher.shape[1],
            queries=queries,
            keys=keys,
            rows_each=max(1, ceil_div(batch * queries, SLOTS)),
            scratch=False,
            wide=any(maps.stride(1) * maps.shape[1] >= 1 << 31 for maps in (student, teacher)),
        )

    def _empty(self, *shape: int) -> Tensor:
        return common.empty(shape, torch.float32, self.student.device)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """(loss in parts (B, parts, Nt), statistics for the gradient)."""
        chunk, mixing, normalization = self.chunk, self.mixing, self.settings.normalization
        batch, teachers = chunk.sentences, mixing.teacher_maps
        parts = mixing.row_groups(chunk)
        by_map = normalization == "map"
        memory = {"loss": self._empty(batch, 1 if by_map else parts, teachers)}
        if normalization != "mixture":
            rows = 1 if by_map else chunk.rows
            memory["statistics"] = self._empty(batch, STATISTICS.value, teachers, rows)
        if by_map:
            memory["partials"] = self._empty(batch, parts, FIELDS.value, teachers)
            steps = [
                mixing.statistics(chunk, *self.views, parts, 0),
                mixing.merge(chunk, parts),
            ]
        else:
            steps = [
                mixing.gradient(
                    chunk, *self.views, None, known=False, measure=True, upstream=False,
                    to_maps=True, weight_gradient=False, parts=parts,
                )
            ]  # fmt: skip
        play(steps, {**self.tensors, **memory})
        return memory["loss"], memory.get("statistics")

    def backward(
        self, statistics: Tensor | None, upstream: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """(gradient of the student's maps, of the weight), where the settings want them."""
        mixing = self.mixing
        memory: dict[str, Tensor | None] = {"statistics": statistics, "upstream": upstream}
        gradient, out = None, None
        if self.settings.gradient:
            # Cells that no query attends to are written by no program.
            gradient = torch.zeros(
                self.student.shape, dtype=self.student.dtype, device=self.student.device
            )
            memory["out"], out = gradient, MapView.of("out", gradient)
        if self.settings.weight_gradient:
            programs = mixing.programs(self.chunk)
            memory["weight_slots"] = self._empty(programs, mixing.teacher_maps, mixing.student_maps)
        each = mixing.gradient(
            self.chunk, *self.views, out, known=True, measure=False, upstream=True, to_maps=True,
            weight_gradient=self.settings.weight_gradient,
        )  # fmt: skip
        play([each], {**self.tensors, **memory})
        slots = memory.get("weight_slots")
        return gradient, None if slots is None else slots.sum(0)
