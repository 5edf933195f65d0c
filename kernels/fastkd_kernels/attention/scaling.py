"""Scales the gradients of a call by what comes from above, in one launch."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fastkd_kernels.attention.config import Launch
from fastkd_kernels.attention.sums import SCALED, scale_gradients_bwd
from fastkd_kernels.common import ceil_div, stride_unit
from fastkd_kernels.launching import Step, step
from fastkd_kernels.once import graph_is_freed

NAMES = ("query", "key", "weight")


def scaled_gradients(
    upstream: Tensor, gradients: Sequence[Tensor | None], learned: Sequence[Tensor]
) -> list[Tensor | None]:
    """gradient · upstream in its tensor's dtype; in place where nobody asks for it again.

    gradients: of queries and keys, and of the weight, contiguous; upstream: one number.
    """
    in_place = graph_is_freed() and all(
        each is None or each.dtype == like.dtype
        for each, like in zip(gradients, learned, strict=True)
    )
    counts = tuple(0 if each is None else each.numel() for each in gradients)
    if not any(counts):
        return list(gradients)
    out = [
        each if each is None or in_place else torch.empty_like(each, dtype=like.dtype)
        for each, like in zip(gradients, learned, strict=True)
    ]
    dtypes = tuple(None if each is None else each.dtype for each in (*gradients, *out))
    tensors: dict[str | None, Tensor | None] = {"upstream": upstream, None: None}
    tensors.update(zip(NAMES, gradients, strict=True))
    tensors.update((f"{name}_out", each) for name, each in zip(NAMES, out, strict=True))
    _step(counts, dtypes, in_place, upstream.dtype, upstream.device).run(tensors)
    return out


@lru_cache(maxsize=256)
def _step(counts: tuple[int, ...], dtypes: tuple, in_place: bool, *of: object) -> Step:
    """of: what else a compiled kernel depends on."""
    unit = stride_unit(*counts)
    names = [name if count else None for name, count in zip(NAMES, counts, strict=True)]
    return step(
        scale_gradients_bwd,
        sum(ceil_div(count, SCALED.value) for count in counts),
        {
            "upstream": "upstream",
            **dict(zip(NAMES, names, strict=True)),
            **{
                f"{name}_out": own and f"{name}_out" for name, own in zip(NAMES, names, strict=True)
            },
        },
        {f"{name}_units": count // unit for name, count in zip(NAMES, counts, strict=True)},
        {"UNIT": unit, "IN_PLACE": in_place},
        Launch(4).options,
    )
