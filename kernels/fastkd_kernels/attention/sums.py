"""The last sums of a call: the loss and the gradient of the weight."""

import triton
import triton.language as tl

BLOCK = tl.constexpr(1024)
ROWS = tl.constexpr(64)
COLUMNS = tl.constexpr(32)
RUNTIME = "loss_parts loss_maps loss_factor slots weight_size".split()


@triton.jit
def add_up(
    program,
    loss,  # (groups, parts, maps)
    total,  # (groups, maps), or one number: all of `loss` times the factor
    loss_parts,
    loss_maps,
    loss_factor,
    totals,  # programs that add up losses: groups, or 1
    weight_slots,  # (slots, weight size), or None
    weight_gradient,  # (weight size,) times the factor
    slots,
    weight_size,
):
    if program < totals:
        if loss_maps == 1:
            added = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, loss_parts, BLOCK):
                place = start + tl.arange(0, BLOCK)
                added += tl.load(loss + place, mask=place < loss_parts, other=0.0)
            tl.store(total, tl.sum(added, 0) * loss_factor)
        else:
            loss += program.to(tl.int64) * loss_parts * loss_maps
            for first in range(0, loss_maps, COLUMNS):
                column = first + tl.arange(0, COLUMNS)
                added = column_sums(loss, loss_parts, loss_maps, column) * loss_factor
                tl.store(total + program * loss_maps + column, added, mask=column < loss_maps)
    elif weight_slots is not None:
        column = (program - totals) * COLUMNS + tl.arange(0, COLUMNS)
        added = column_sums(weight_slots, slots, weight_size, column) * loss_factor
        tl.store(weight_gradient + column, added, mask=column < weight_size)


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
    loss_parts,
    loss_maps,
    loss_factor,
    totals,
    slots,
    weight_size,
):
    add_up(
        tl.program_id(0), loss, total, loss_parts, loss_maps, loss_factor, totals, weight_slots,
        weight_gradient, slots, weight_size,
    )  # fmt: skip
