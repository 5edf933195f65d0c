"""Where the gradients of the mixed maps are written."""

import triton
import triton.language as tl


@triton.jit
def add_to_memory(place, value, mask, written):
    """Adds to what this program wrote before, or writes for the first time."""
    if written:
        value += tl.load(place, mask=mask, other=0.0)
        tl.debug_barrier()
    tl.store(place, value, mask=mask)
    tl.debug_barrier()


@triton.jit
def write_zeros(place, zeros, count, BLOCK: tl.constexpr):
    """zeros: (BLOCK,)"""
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        add_to_memory(place + index, zeros, index < count, False)


@triton.jit
def weight_places(rival, head, teacher_maps, student_maps):
    place = rival[:, None] * student_maps + head[None, :]
    return place, (rival < teacher_maps)[:, None] & (head < student_maps)[None, :]


@triton.jit
def store_map_gradient(
    out,
    gradient,  # (BLOCK_K, BLOCK_H)
    head,
    heads,
    key,
    width,
    seen,
    head_stride,
    key_stride,
    UNIT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
    TO_MAPS: tl.constexpr,
):
    if WIDE:
        along = head.to(tl.int64) * (head_stride.to(tl.int64) * UNIT)
    else:
        along = head * (head_stride * UNIT)
    across = key if CONTIGUOUS else key.to(tl.int64) * key_stride
    limit = seen if TO_MAPS else width * UNIT
    tl.store(
        out + across[:, None] + along[None, :],
        gradient.to(out.dtype.element_ty),
        mask=(key < limit)[:, None] & (head < heads)[None, :],
    )
