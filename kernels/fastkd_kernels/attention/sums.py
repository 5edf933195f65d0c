"""The last sums of a call: the loss, the gradient of the weight, and the scaling in backward."""

import triton
import triton.language as tl

BLOCK = tl.constexpr(1024)
SCALED = tl.constexpr(4096)  # elements of a gradient that a program scales
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


@triton.jit
def scale_block(source, out, program, units, factor, UNIT: tl.constexpr):
    source += program.to(tl.int64) * SCALED
    out += program.to(tl.int64) * SCALED
    place = tl.arange(0, SCALED)
    mask = place < (units - program * (SCALED // UNIT)) * UNIT
    value = tl.load(source + place, mask=mask, other=0.0).to(tl.float32) * factor
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["query_units", "key_units", "weight_units"])
def scale_gradients_bwd(
    upstream,  # one number
    query,
    key,
    weight,
    query_out,  # the same tensors, where they may be overwritten
    key_out,
    weight_out,
    query_units,  # elements, in UNITs
    key_units,
    weight_units,
    UNIT: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Gradients times the upstream gradient; nothing to do in place where it is 1."""
    factor = tl.load(upstream).to(tl.float32)
    query_programs = tl.cdiv(query_units, SCALED // UNIT)
    key_programs = tl.cdiv(key_units, SCALED // UNIT)
    program = tl.program_id(0)
    if not IN_PLACE or factor != 1:
        if program < query_programs:
            if query is not None:
                scale_block(query, query_out, program, query_units, factor, UNIT)
        elif program < query_programs + key_programs:
            if key is not None:
                scale_block(key, key_out, program - query_programs, key_units, factor, UNIT)
        elif weight is not None:
            program -= query_programs + key_programs
            scale_block(weight, weight_out, program, weight_units, factor, UNIT)
