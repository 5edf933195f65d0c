"""The last sums of a call: the loss and the gradient of the weight."""

from dataclasses import dataclass

import triton
import triton.language as tl

from fastkd_kernels.attention.config import Launch
from fastkd_kernels.common import ceil_div
from fastkd_kernels.launching import Step, step

BLOCK = tl.constexpr(1024)
ROWS = tl.constexpr(64)
COLUMNS = tl.constexpr(16)
RUNTIME = "loss_parts loss_maps loss_factor slots weight_size student_maps".split()


@triton.jit
def add_up(
    program,
    loss,  # (groups, parts, maps), or None
    total,  # (groups, maps), times the factor
    loss_parts,
    loss_maps,
    loss_factor,
    totals,  # programs that add up losses: groups
    weight_slots,  # (slots, weight size), or None
    weight_gradient,  # (weight size,) times the factor
    mixing,  # (Nt, Ns) softmax of the weight, which the gradient goes back through; or None
    slots,
    weight_size,
    student_maps,
):
    if program < totals:
        if loss is not None:
            loss += program.to(tl.int64) * loss_parts * loss_maps
            if loss_maps == 1:
                added = tl.zeros((BLOCK,), tl.float32)
                for start in range(0, loss_parts, BLOCK):
                    place = start + tl.arange(0, BLOCK)
                    added += tl.load(loss + place, mask=place < loss_parts, other=0.0)
                tl.store(total + program, tl.sum(added, 0) * loss_factor)
            else:
                for first in range(0, loss_maps, COLUMNS):
                    column = first + tl.arange(0, COLUMNS)
                    added = column_sums(loss, loss_parts, loss_maps, column) * loss_factor
                    tl.store(total + program * loss_maps + column, added, mask=column < loss_maps)
    elif weight_slots is not None:
        if mixing is None:
            column = (program - totals) * COLUMNS + tl.arange(0, COLUMNS)
            added = column_sums(weight_slots, slots, weight_size, column) * loss_factor
            tl.store(weight_gradient + column, added, mask=column < weight_size)
        else:
            first = (program - totals) * student_maps  # of a row of the weight
            softmax_gradient(
                weight_slots, weight_gradient, mixing, slots, weight_size, first,
                first + student_maps, loss_factor,
            )  # fmt: skip


@triton.jit
def softmax_gradient(weight_slots, weight_gradient, mixing, slots, weight_size, first, end, factor):
    """A ∘ (dA − ⟨A, dA⟩) of the row of A that is `mixing` from `first` to `end`."""
    product = 0.0
    for start in range(first, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        added = column_sums(weight_slots, slots, weight_size, column) * factor
        share = tl.load(mixing + column, mask=column < end, other=0.0)
        product += tl.sum(tl.where(column < end, added * share, 0.0), 0)
        tl.store(weight_gradient + column, added, mask=column < end)
    tl.debug_barrier()
    for start in range(first, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        added = tl.load(weight_gradient + column, mask=column < end, other=0.0)
        share = tl.load(mixing + column, mask=column < end, other=0.0)
        tl.debug_barrier()  # each warp holds all columns: none writes before all have read
        tl.store(weight_gradient + column, (added - product) * share, mask=column < end)


@triton.jit
def column_sums(table, rows, width, column):
    """(COLUMNS,) of a table (rows, width)."""
    added = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        added += tl.load(table + place, mask=mask, other=0.0)
    return tl.sum(added, 0)


@triton.jit(do_not_specialize=[*RUNTIME, "totals"])
def sums_fwd(
    loss,
    total,
    weight_slots,
    weight_gradient,
    mixing,
    loss_parts,
    loss_maps,
    loss_factor,
    totals,
    slots,
    weight_size,
    student_maps,
):
    add_up(
        tl.program_id(0), loss, total, loss_parts, loss_maps, loss_factor, totals, weight_slots,
        weight_gradient, mixing, slots, weight_size, student_maps,
    )  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """What `add_up` takes of one call, under the names that a call has its memory by.

    groups: (sentences, their parts, maps of each) of "loss", whose sum is one number or `maps` of
    each sentence; weight: (slots, Nt, Ns), or None
    """

    groups: tuple[int, ...] | None
    factor: float  # of the one number; 0: sums stay apart
    weight: tuple[int, ...] | None = None
    softmax: bool = False  # whether the weight's gradient goes back through its softmax, "weight"

    @property
    def tensors(self) -> dict[str, str | None]:
        lost, weight = self.groups is not None, self.weight is not None
        return {
            "loss": "loss" if lost else None,
            "total": "total" if lost else None,
            "weight_slots": "weight_slots" if weight else None,
            "weight_gradient": "weight_gradient" if weight else None,
            "mixing": "weight" if self.softmax and weight else None,
        }

    @property
    def totals(self) -> int:
        if self.groups is None:
            return 0
        return 1 if self.factor else self.groups[0]

    @property
    def programs(self) -> int:
        if self.weight is None:
            return self.totals
        _, teachers, students = self.weight
        rows = teachers if self.softmax else ceil_div(teachers * students, COLUMNS.value)
        return self.totals + rows

    @property
    def scalars(self) -> dict[str, int | float]:
        groups, parts, maps = self.groups or (0, 0, 0)
        slots, teachers, students = self.weight or (0, 0, 0)
        return {
            "loss_parts": groups * parts * maps if self.factor else parts,
            "loss_maps": 1 if self.factor else maps,
            "loss_factor": self.factor or 1.0,
            "totals": self.totals,
            "slots": slots,
            "weight_size": teachers * students,
            "student_maps": students,
        }

    def step(self) -> Step:
        """As a launch of its own."""
        return step(sums_fwd, self.programs, self.tensors, self.scalars, {}, Launch(4).options)
