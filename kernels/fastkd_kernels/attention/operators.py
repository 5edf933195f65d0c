"""The attention alignment kernels as PyTorch operators, with gradients and shapes for compilers.

Operators `fastkd::align_*` return losses by sentence and teacher map, (B, Nt) in float32, or,
with `reduce`, their sum. From queries and keys a reduced loss takes its gradients in the forward
walk, while the maps are at hand, and backward only scales them.
"""

import torch
from torch import Tensor

from fastkd_kernels.attention.mixing.launch import Settings
from fastkd_kernels.attention.mixing.maps import MapAlignment
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.pairs.alignment import PairAlignment
from fastkd_kernels.attention.query_key.alignment import QueryKeyAlignment
from fastkd_kernels.once import early_dtype, only_first_order

OPTIONS = (
    "Tensor? query_lengths, Tensor? key_lengths, float student_scale, float teacher_scale, "
    "bool causal, str normalization, float temperature, bool include"
)
QUERIES = "Tensor student_query, Tensor student_key, Tensor teacher_query, Tensor teacher_key"
MAPS = "Tensor student, Tensor teacher, Tensor? weight"
WANTED = "bool gradient, bool weight_gradient"

SCHEMAS = {
    "align_queries": f"({QUERIES}, Tensor weight, {OPTIONS}, bool reduce, {WANTED}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "align_queries_bwd": f"(Tensor upstream, {QUERIES}, Tensor weight, {OPTIONS}, {WANTED}) "
    "-> (Tensor, Tensor, Tensor)",
    "align_pairs": f"({QUERIES}, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
    "align_pairs_bwd": f"(Tensor upstream, Tensor logs, Tensor statistics, {QUERIES}, {OPTIONS}) "
    "-> (Tensor, Tensor)",
    "align_maps": f"({MAPS}, {OPTIONS}) -> (Tensor, Tensor)",
    "align_maps_bwd": f"(Tensor upstream, Tensor statistics, {MAPS}, {OPTIONS}, {WANTED}) "
    "-> (Tensor, Tensor)",
}
for name, schema in SCHEMAS.items():
    torch.library.define(f"fastkd::{name}", schema)


def _nothing(like: Tensor) -> Tensor:
    """Operators return tensors: an empty one stands for a gradient that nobody asked for."""
    return like.new_empty(0, dtype=torch.float32)


SECOND_ORDER = (
    "the triton backend has no second-order gradient of the attention alignment loss: "
    "use backend='reference'"
)


# From queries and keys, with a weight.


def _align_queries(
    student_query, student_key, teacher_query, teacher_key, weight, query_lengths, key_lengths,
    *options,
):  # fmt: skip
    *settings, reduce, gradient, weight_gradient = options
    call = QueryKeyAlignment(
        (student_query, student_key),
        (teacher_query, teacher_key),
        weight.contiguous(),
        query_lengths,
        key_lengths,
        None,
        Settings(*settings, gradient, weight_gradient),
        early_dtype(student_query.dtype),
    )
    loss, *gradients = call.run()
    loss = loss.sum() if reduce else loss.flatten(2).sum(2)
    return loss, *(_nothing(weight) if found is None else found for found in gradients)


def _align_queries_fake(student_query, student_key, teacher_query, teacher_key, weight, *options):
    *_, reduce, gradient, weight_gradient = options
    shape = () if reduce else (student_query.shape[0], teacher_query.shape[1])
    dtype = early_dtype(student_query.dtype)
    return (
        weight.new_empty(shape, dtype=torch.float32),
        student_query.new_empty(student_query.shape, dtype=dtype) if gradient else _nothing(weight),
        student_key.new_empty(student_key.shape, dtype=dtype) if gradient else _nothing(weight),
        weight.new_empty(weight.shape) if weight_gradient else _nothing(weight),
    )


def _align_queries_setup(ctx, inputs, output):
    ctx.options, ctx.reduce, ctx.wanted = inputs[7:-3], inputs[-3], inputs[-2:]
    ctx.save_for_backward(*inputs[:7], *output[1:])


def _align_queries_backward(ctx, upstream, *_):
    *inputs, query, key, change = ctx.saved_tensors
    learned = inputs[0], inputs[1], inputs[4]
    with torch.no_grad():
        if ctx.reduce:
            found = [gradient * upstream for gradient in (query, key, change)]
        else:
            found = torch.ops.fastkd.align_queries_bwd(
                upstream.contiguous(), *inputs, *ctx.options, *ctx.wanted
            )
        wanted = ctx.wanted[0], ctx.wanted[0], ctx.wanted[1]
        found = tuple(
            gradient.to(tensor.dtype) if asked else None
            for gradient, tensor, asked in zip(found, learned, wanted, strict=True)
        )
    query, key, change = only_first_order(found, learned, SECOND_ORDER)
    return query, key, None, None, change, *(None for _ in range(11))


def _align_queries_bwd(
    upstream, student_query, student_key, teacher_query, teacher_key, weight, query_lengths,
    key_lengths, *options,
):  # fmt: skip
    call = QueryKeyAlignment(
        (student_query, student_key),
        (teacher_query, teacher_key),
        weight.contiguous(),
        query_lengths,
        key_lengths,
        upstream.float(),
        Settings(*options),
        student_query.dtype,
    )
    _, *gradients = call.run()
    return tuple(_nothing(weight) if found is None else found for found in gradients)


def _align_queries_bwd_fake(
    upstream, student_query, student_key, teacher_query, teacher_key, weight, *options
):
    *_, gradient, weight_gradient = options
    return (
        student_query.new_empty(student_query.shape) if gradient else _nothing(weight),
        student_key.new_empty(student_key.shape) if gradient else _nothing(weight),
        weight.new_empty(weight.shape) if weight_gradient else _nothing(weight),
    )


# From queries and keys, head against head.


def _pairs(
    student_query, student_key, teacher_query, teacher_key, query_lengths, key_lengths, *options
) -> PairAlignment:
    return PairAlignment(
        (student_query, student_key),
        (teacher_query, teacher_key),
        query_lengths,
        key_lengths,
        Settings(*options, True, False),
    )


def _align_pairs(*inputs):
    loss, logs, statistics = _pairs(*inputs).forward()
    return loss.sum(2), logs, statistics


def _align_pairs_fake(student_query, *inputs):
    batch, heads, queries, _ = student_query.shape
    groups = {"mixture": 0, "row": queries, "map": 1}[inputs[-3]]
    return (
        student_query.new_empty((batch, heads), dtype=torch.float32),
        student_query.new_empty((batch, heads, 5, queries), dtype=torch.float32),
        student_query.new_empty((batch, STATISTICS.value, heads, groups), dtype=torch.float32),
    )


def _align_pairs_setup(ctx, inputs, output):
    ctx.options = inputs[6:]
    ctx.save_for_backward(*inputs[:6], *output[1:])


def _align_pairs_backward(ctx, upstream, *_):
    *inputs, logs, statistics = ctx.saved_tensors
    with torch.no_grad():
        found = torch.ops.fastkd.align_pairs_bwd(
            upstream.contiguous(), logs, statistics, *inputs, *ctx.options
        )
    return *only_first_order(found, inputs[:2], SECOND_ORDER), *(None for _ in range(10))


def _align_pairs_bwd(upstream, logs, statistics, *inputs):
    return _pairs(*inputs).backward(logs, statistics, upstream)


def _align_pairs_bwd_fake(upstream, logs, statistics, student_query, student_key, *inputs):
    return student_query.new_empty(student_query.shape), student_key.new_empty(student_key.shape)


# From maps.


def _align_maps(student, teacher, weight, query_lengths, key_lengths, *options):
    weight = None if weight is None else weight.contiguous()
    settings = Settings(*options, False, False)
    call = MapAlignment(student, teacher, weight, query_lengths, key_lengths, settings)
    loss, statistics = call.forward()
    return loss.flatten(2).sum(2), _nothing(loss) if statistics is None else statistics


def _align_maps_fake(student, teacher, weight, query_lengths, key_lengths, *options):
    batch, maps, queries, _ = teacher.shape
    rows = {"row": queries, "map": 1}.get(options[3])
    shape = (batch, STATISTICS.value, maps, rows) if rows else (0,)
    return (
        teacher.new_empty((batch, maps), dtype=torch.float32),
        teacher.new_empty(shape, dtype=torch.float32),
    )


def _align_maps_setup(ctx, inputs, output):
    ctx.options = inputs[5:]
    ctx.save_for_backward(*inputs[:5], output[1])


def _align_maps_backward(ctx, upstream, *_):
    *inputs, statistics = ctx.saved_tensors
    student, _, weight, *_ = inputs
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    with torch.no_grad():
        found = torch.ops.fastkd.align_maps_bwd(
            upstream.contiguous(), statistics, *inputs, *ctx.options, *wanted
        )
        found = tuple(
            gradient if asked else None for gradient, asked in zip(found, wanted, strict=True)
        )
    gradient, change = only_first_order(found, (student, weight), SECOND_ORDER)
    return gradient, None, change, *(None for _ in range(8))


def _align_maps_bwd(
    upstream, statistics, student, teacher, weight, query_lengths, key_lengths, *options
):
    weight = None if weight is None else weight.contiguous()
    settings = Settings(*options)
    call = MapAlignment(student, teacher, weight, query_lengths, key_lengths, settings)
    found = call.backward(statistics if statistics.numel() else None, upstream)
    return tuple(_nothing(upstream) if gradient is None else gradient for gradient in found)


def _align_maps_bwd_fake(upstream, statistics, student, teacher, weight, *options):
    *_, gradient, weight_gradient = options
    return (
        student.new_empty(student.shape) if gradient else _nothing(upstream),
        weight.new_empty(weight.shape) if weight_gradient else _nothing(upstream),
    )


KERNELS = {
    "align_queries": (_align_queries, _align_queries_fake),
    "align_queries_bwd": (_align_queries_bwd, _align_queries_bwd_fake),
    "align_pairs": (_align_pairs, _align_pairs_fake),
    "align_pairs_bwd": (_align_pairs_bwd, _align_pairs_bwd_fake),
    "align_maps": (_align_maps, _align_maps_fake),
    "align_maps_bwd": (_align_maps_bwd, _align_maps_bwd_fake),
}
for name, (kernel, fake) in KERNELS.items():
    for device in ("cpu", "cuda"):
        torch.library.impl(f"fastkd::{name}", device, kernel)
    torch.library.register_fake(f"fastkd::{name}", fake)

torch.library.register_autograd(
    "fastkd::align_queries", _align_queries_backward, setup_context=_align_queries_setup
)
torch.library.register_autograd(
    "fastkd::align_pairs", _align_pairs_backward, setup_context=_align_pairs_setup
)
torch.library.register_autograd(
    "fastkd::align_maps", _align_maps_backward, setup_context=_align_maps_setup
)
