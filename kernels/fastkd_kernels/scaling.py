"""Scales the gradients of a call by what comes from above, in one launch."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastkd_kernels.common import ceil_div, stride_unit
from fastkd_kernels.launching import Step, step
from fastkd_kernels.once import graph_is_freed

SCALED = tl.constexpr(4096)  # elements of a gradient that a program scales
NAMES = ("first", "second", "third")
VARYING = ("first_units", "second_units", "third_units")


@triton.jit
def scale_block(source, out, program, units, factor, UNIT: tl.constexpr):
    source += program.to(tl.int64) * SCALED
    out += program.to(tl.int64) * SCALED
    place = tl.arange(0, SCALED)
    mask = place < (units - program * (SCALED // UNIT)) * UNIT
    value = tl.load(source + place, mask=mask, other=0.0).to(tl.float32) * factor
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def scale_gradients_bwd(
    upstream,  # one number
    first,
    second,
    third,
    first_out,  # the same tensors, where they may be overwritten
    second_out,
    third_out,
    first_units,  # elements, in UNITs
    second_units,
    third_units,
    UNIT: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Gradients times the upstream gradient; nothing to do in place where it is 1."""
    factor = tl.load(upstream).to(tl.float32)
    first_programs = tl.cdiv(first_units, SCALED // UNIT)
    second_programs = tl.cdiv(second_units, SCALED // UNIT)
    program = tl.program_id(0)
    if not IN_PLACE or factor != 1:
        if program < first_programs:
            if first is not None:
                scale_block(first, first_out, program, first_units, factor, UNIT)
        elif program < first_programs + second_programs:
            if second is not None:
                scale_block(
                    second, second_out, program - first_programs, second_units, factor, UNIT
                )
        elif third is not None:
            program -= first_programs + second_programs
            scale_block(third, third_out, program, third_units, factor, UNIT)


def scaled_gradients(
    upstream: Tensor, gradients: Sequence[Tensor | None], learned: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """gradient · upstream in its tensor's dtype; in place where nobody asks for it again.

    gradients: three, contiguous, or None; learned: their tensors; upstream: one number.
    """
    dtypes = [
        None if each is None or like is None else like.dtype
        for each, like in zip(gradients, learned, strict=True)
    ]
    given = [None if each is None else each.dtype for each in gradients]
    counts = [0 if each is None else each.numel() for each in gradients]
    if not any(counts):
        return list(gradients)
    in_place = graph_is_freed() and given == dtypes
    out = [
        each if each is None or in_place else torch.empty_like(each, dtype=dtype)
        for each, dtype in zip(gradients, dtypes, strict=True)
    ]
    of = (*given, *dtypes, upstream.dtype, upstream.device)
    planned, programs, units = _planned(tuple(counts), in_place, of)
    planned.launch((upstream, *gradients, *out), programs, units)
    return out


@lru_cache(maxsize=1024)
def _planned(
    counts: tuple[int, ...], in_place: bool, of: tuple[object, ...]
) -> tuple[Step, int, tuple[int, ...]]:
    """(launch, programs, units of each gradient) for gradients of so many elements."""
    unit = stride_unit(*counts)
    units = tuple(count // unit for count in counts)
    programs = sum(ceil_div(count, SCALED.value) for count in counts)
    return _step(unit, in_place, of, *(each >> 31 > 0 for each in units)), programs, units


@lru_cache(maxsize=256)
def _step(unit: int, in_place: bool, *of: object) -> Step:
    """of: what else a compiled kernel depends on."""
    return step(
        scale_gradients_bwd,
        programs=0,
        tensors={name: name for name in ("upstream", *NAMES, *(f"{name}_out" for name in NAMES))},
        varying=VARYING,
        scalars={},
        constants={"UNIT": unit, "IN_PLACE": in_place},
        options={"num_warps": 4},
    )
