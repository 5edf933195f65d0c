"""Loss and gradients of one call, unit by unit."""

from dataclasses import dataclass
from functools import reduce

import torch
from fastkd_kernels.once import early_dtype
from torch import Tensor

from fastkd.backends.attention.torch.batch import Batch
from fastkd.backends.attention.torch.divergence import MILD, Even, Groups, Steep, Sums, mixture
from fastkd.backends.attention.torch.maps_given import GivenMaps, LearnedMaps
from fastkd.backends.attention.torch.plan import Block, Plan, Unit
from fastkd.backends.attention.torch.sources import Attention, LearnedAttention, Workspace, pick
from fastkd.functional.calls import AlignmentOptions


@dataclass
class Problem:
    """What a call compares, and how."""

    student: LearnedAttention | LearnedMaps
    teacher: Attention | GivenMaps
    weight: Tensor | None  # (Nt, Ns) of the mix, in the inside dtype; None: map n with map n
    batch: Batch
    options: AlignmentOptions
    workspace: Workspace
    numbers: int  # that the maps of a block and what becomes of them may take
    even: bool  # exponents are known to be small

    def plan(self) -> Plan:
        cell = 2 * self.batch.student_maps + 3 * self.batch.teacher_maps
        row = self.student.row_size + self.teacher.row_size
        return Plan(self.batch, self.numbers // cell, row // cell)


class Walk:
    """The loss of each map, and the gradients that are asked for, in one walk over the units."""

    def __init__(
        self, problem: Problem, upstream: Tensor | None, maps_learn: bool, weight_learns: bool
    ) -> None:
        """upstream: (B, Nt) gradient of the loss of each map; None stands for ones."""
        self.problem = problem
        self.batch = problem.batch
        self.options = problem.options
        self.student, self.teacher = problem.student, problem.teacher
        self.weight = problem.weight
        self.upstream = upstream
        self.maps_learn = maps_learn
        self.loss = torch.zeros(
            self.batch.sentences,
            self.batch.teacher_maps,
            dtype=torch.float64,
            device=self.batch.device,
        )
        self.weight_gradient = None
        if weight_learns and self.weight is not None:
            self.weight_gradient = torch.zeros_like(self.weight)
        self.whole_map = self.options.normalization == "map"
        # Known exactly for attention, whose rows add up to 1; given maps may hold anything.
        self.attention = isinstance(self.student, Attention)
        self.mild = problem.even and self.options.temperature * MILD >= 1
        self.measure = Even(problem.workspace) if self.mild else Steep()
        self.map_counts = self.batch.map_counts()

    def run(self) -> None:
        if self.maps_learn:
            self.student.start_gradients()
        for unit in self.problem.plan().units:
            self.student.open(unit)
            self.teacher.open(unit)
            if self.maps_learn:
                self.student.open_gradients(unit)
            if self.options.normalization == "mixture":
                self._mixture(unit)
            elif self.whole_map:
                self._maps(unit)
            else:
                self._rows(unit)
            if self.maps_learn:
                self.student.close_gradients(unit)

    def weight_gradient_of(self, weight: Tensor) -> Tensor | None:
        """The gradient of the weight as the caller holds it, but for float16's small numbers."""
        gradient = self.weight_gradient
        if gradient is None or self.weight is None:
            return None
        if self.options.normalization == "mixture":
            gradient = self.weight * (gradient - (self.weight * gradient).sum(1, keepdim=True))
        return gradient.to(early_dtype(weight.dtype))

    @property
    def learning(self) -> bool:
        return self.maps_learn or self.weight_gradient is not None

    def _mixture(self, unit: Unit) -> None:
        for block in unit.blocks:
            counted = self._counted(unit, block)
            student, teacher = self.student.maps(block, counted), self.teacher.maps(block, counted)
            if counted is not None:
                teacher.masked_fill_(~counted, 0)
            mixed = self._mixed(student)
            teacher, mixed = (each.flatten(2)[:, :, None] for each in (teacher, mixed))
            divergence, gradient = mixture(teacher, mixed)
            self._add_loss(unit, divergence.sum(-1))
            if self.learning:
                self._backward(unit, block, student, gradient, None)

    def _rows(self, unit: Unit) -> None:
        for block in unit.blocks:
            student = self._prepare(unit, block)
            sums = self.measure.measure()
            if self.options.padding == "include":
                sums = sums.merged(zeros(self._row_zeros(unit, block), sums))
            self._add_loss(unit, sums.divergence().sum(-1))
            if self.learning:
                gradient, factor = self.measure.gradient(sums)
                self._backward(unit, block, student, gradient, factor)

    def _maps(self, unit: Unit) -> None:
        """One pass where a block holds the whole map, else one for the sums, one for the rest."""
        parts = []
        for block in unit.blocks:
            student = self._prepare(unit, block)
            parts.append(self.measure.measure().double())
        sums = reduce(Sums.merged, parts)
        if self.options.padding == "include":
            sums = sums.merged(zeros(self._map_zeros(unit), sums))
        self._add_loss(unit, sums.divergence().sum(-1))
        if not self.learning:
            return
        for block in unit.blocks:
            if len(unit.blocks) > 1:
                student = self._prepare(unit, block)
            gradient, factor = self.measure.gradient(sums)
            self._backward(unit, block, student, gradient, factor)

    def _prepare(self, unit: Unit, block: Block) -> Tensor:
        """Hand a block's a and m − a to `measure`; returns the student's maps."""
        counted = self._counted(unit, block)
        student, teacher = self.student.maps(block, counted), self.teacher.maps(block, counted)
        if self.options.temperature != 1:
            teacher.mul_(1 / self.options.temperature)
        difference = self._mixed(student, minus=teacher)
        groups = Groups(counted, self._centre(unit, block))
        if self.whole_map:
            teacher, difference = (each.flatten(2)[:, :, None] for each in (teacher, difference))
            groups.counted = None if counted is None else counted.flatten(2)[:, :, None]
        self.measure.prepare(teacher, difference, groups)
        return student

    def _counted(self, unit: Unit, block: Block) -> Tensor | None:
        """(sentences, 1, rows, keys)"""
        counted = None
        if block.seen is not None:
            key = torch.arange(block.keys, device=block.seen.device)
            counted = (key < block.seen[..., None])[:, None]
        if self.batch.mask is None:
            return counted
        given = self.batch.mask.expand(-1, self.batch.queries, -1)
        given = pick(given[:, block.start : block.stop, : block.keys], unit)[:, None]
        return given if counted is None else counted & given

    def _mixed(self, student: Tensor, minus: Tensor | None = None) -> Tensor:
        """The mix of the student's maps, or its m − a."""
        scale = 1.0 if minus is None else 1 / self.options.temperature
        sentences, _, rows, keys = student.shape
        out = self.problem.workspace.take("mixed", sentences, self.batch.teacher_maps, rows, keys)
        if self.weight is None:
            torch.mul(student, scale, out=out)
            return out if minus is None else out.sub_(minus)
        weight = self.weight.expand(sentences, -1, -1)
        flat = out.flatten(2)
        torch.baddbmm(
            flat if minus is None else minus.flatten(2),
            weight,
            student.flatten(2),
            beta=0 if minus is None else -1,
            alpha=scale,
            out=flat,
        )
        return out

    def _centre(self, unit: Unit, block: Block) -> Tensor | None:
        """Mean of m − a over the cells of each group, (sentences, maps, groups)."""
        if not self.attention or self.weight is None:
            return None
        surplus = (self.weight.sum(1) - 1) / self.options.temperature  # (Nt,) of a whole row
        batch = self.batch
        if self.whole_map:
            cells, rows = (pick(count, unit) for count in self.map_counts)
            if self.options.padding == "include":
                cells = torch.full_like(cells, batch.queries * batch.keys)
            share = (rows / cells.clamp(min=1))[:, None]  # (sentences, 1)
        elif self.options.padding == "include":
            share = torch.full((len(unit.sentences), 1), 1 / batch.keys, device=surplus.device)
        elif block.seen is None:
            share = torch.full((len(unit.sentences), 1), 1 / block.keys, device=surplus.device)
        else:
            share = 1 / block.seen.clamp(min=1)
        return surplus[:, None] * share[:, None].to(surplus.dtype)

    def _row_zeros(self, unit: Unit, block: Block) -> Tensor:
        """Cells of each row that are zero in both maps, (sentences or 1, 1, rows or 1)."""
        keys = self.batch.keys
        counted = self._counted(unit, block) if self.batch.mask is not None else None
        if counted is not None:
            return keys - counted.sum(-1)
        if block.seen is None:
            return torch.full((1, 1, 1), keys - block.keys, device=self.loss.device)
        return (keys - block.seen)[:, None]

    def _map_zeros(self, unit: Unit) -> Tensor:
        cells = pick(self.map_counts[0], unit)
        return (self.batch.queries * self.batch.keys - cells)[:, None, None]

    def _add_loss(self, unit: Unit, loss: Tensor) -> None:
        """loss: (sentences, maps)"""
        if unit.contiguous:
            self.loss[unit.sentences[0] : unit.sentences[-1] + 1] += loss
        else:
            index = torch.tensor(unit.sentences).to(loss.device, non_blocking=True)
            self.loss.index_add_(0, index, loss.double())

    def _backward(
        self, unit: Unit, block: Block, student: Tensor, gradient: Tensor, factor: Tensor | None
    ) -> None:
        """gradient · factor: of the mixed maps' (sentences, maps, groups, cells), per unit of loss;
        factor (sentences, maps, groups)."""
        shape = len(unit.sentences), self.batch.teacher_maps, 1
        scale = gradient.new_ones(shape) if factor is None else factor
        if self.upstream is not None:
            scale = scale * pick(self.upstream, unit)[..., None].to(gradient.dtype)
        if self.options.normalization != "mixture":
            scale = scale / self.options.temperature
        if self.weight is None or scale.shape[2] > 1:
            gradient.mul_(scale[..., None])
            scale = gradient.new_ones(shape)
        gradient = gradient.view(*shape[:2], -1)
        cells = student.flatten(2)
        if self.weight_gradient is not None:
            self.weight_gradient += (scale * torch.bmm(gradient, cells.mT)).sum(0)
        if not self.maps_learn:
            return
        if self.weight is not None:
            out = self.problem.workspace.take("student gradient", *cells.shape)
            gradient = torch.bmm((scale * self.weight).mT, gradient, out=out)
        self.student.add_gradients(block, student, gradient.view(student.shape))


def zeros(count: Tensor, like: Sums) -> Sums:
    """The sums of `count` cells that are zero in both maps."""
    log_count = count.to(like.mean.dtype).log().expand(like.mean.shape)
    nothing = torch.zeros_like(like.mean)
    return Sums(log_count, nothing, nothing, nothing, None if like.far is None else log_count)
