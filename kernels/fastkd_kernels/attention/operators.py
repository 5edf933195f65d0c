"""The attention alignment kernels as PyTorch operators, with gradients and shapes for compilers.

Operators `fastkd::align_*` return losses by sentence and teacher map, (B, Nt) in float32, or,
with `reduce`, their sum times it. From queries and keys a reduced loss takes its gradients in the
forward walk, while the maps are at hand, and backward only scales them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastkd_kernels.attention.mixing.launch import Settings
from fastkd_kernels.attention.mixing.maps import MapAlignment
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.pairs.alignment import PairAlignment
from fastkd_kernels.attention.query_key.alignment import align
from fastkd_kernels.once import early_dtype, only_first_order, runs_at_once
from fastkd_kernels.scaling import scaled_gradients

OPTIONS = (
    "Tensor? query_lengths, Tensor? key_lengths, float student_scale, float teacher_scale, "
    "bool causal, str normalization, float temperature, bool include"
)
QUERIES = "Tensor student_query, Tensor student_key, Tensor teacher_query, Tensor teacher_key"
MAPS = "Tensor student, Tensor teacher, Tensor? weight"
WANTED = "bool gradient, bool weight_gradient"

SCHEMAS = {
    "align_queries": f"({QUERIES}, Tensor weight, {OPTIONS}, float reduce, {WANTED}) "
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

NAMES = ("student_query", "student_key", "teacher_query", "teacher_key", "weight")
# What `AlignQueries` takes: by NAMES, then the lengths of queries and of keys.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def _aligned(inputs, options, reduce, wanted, upstream, dtype) -> tuple[Tensor | None, ...]:
    *queries, weight, query_lengths, key_lengths = inputs
    tensors = dict(zip(NAMES, (*queries, weight.contiguous()), strict=True))
    optional = {"query_lengths": query_lengths, "key_lengths": key_lengths, "upstream": upstream}
    return align(tensors, optional, Settings(*options, *wanted), reduce, dtype)


def _align_queries(*inputs):
    *options, reduce, gradient, weight_gradient = inputs[7:]
    dtype = early_dtype(inputs[0].dtype)
    found = _aligned(inputs[:7], options, reduce, (gradient, weight_gradient), None, dtype)
    return tuple(_nothing(inputs[4]) if each is None else each for each in found)


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
        changes = tuple(
            gradient.to(tensor.dtype) if asked else None
            for gradient, tensor, asked in zip(found, learned, wanted, strict=True)
        )
    query, key, change = only_first_order(changes, learned, SECOND_ORDER)
    return query, key, None, None, change, *(None for _ in range(11))


def _align_queries_bwd(upstream, *inputs):
    *options, gradient, weight_gradient = inputs[7:]
    wanted = gradient, weight_gradient
    found = _aligned(inputs[:7], options, 0.0, wanted, upstream.float(), inputs[0].dtype)
    return tuple(_nothing(inputs[4]) if each is None else each for each in found[1:])


def _align_queries_bwd_fake(
    upstream, student_query, student_key, teacher_query, teacher_key, weight, *options
):
    *_, gradient, weight_gradient = options
    return (
        student_query.new_empty(student_query.shape) if gradient else _nothing(weight),
        student_key.new_empty(student_key.shape) if gradient else _nothing(weight),
        weight.new_empty(weight.shape) if weight_gradient else _nothing(weight),
    )


class AlignQueries(torch.autograd.Function):
    """`fastkd::align_queries` where no compiler traces: without the way through a dispatcher."""

    @staticmethod
    def forward(ctx, options, reduce, *tensors):
        wanted = (
            ctx.needs_input_grad[2] or ctx.needs_input_grad[3],
            ctx.needs_input_grad[6],
        )
        dtype = early_dtype(tensors[0].dtype)
        loss, *found = _aligned(tensors, options, reduce, wanted, None, dtype)
        ctx.options, ctx.reduce, ctx.wanted = options, reduce, wanted
        ctx.save_for_backward(*tensors, *found)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        *tensors, query, key, change = ctx.saved_tensors
        learned = tensors[0], tensors[1], tensors[4]
        if ctx.reduce:
            found = scaled_gradients(upstream, (query, key, change), learned)
        else:
            upstream = upstream.contiguous().float()
            dtype = tensors[0].dtype
            _, *found = _aligned(tensors, ctx.options, 0.0, ctx.wanted, upstream, dtype)
        query, key, change = only_first_order(found, learned, SECOND_ORDER)
        return None, None, query, key, None, None, change, None, None


def align_queries(tensors: Inputs, options: tuple, reduce: float) -> Tensor:
    """Losses by sentence and teacher map, (B, Nt), or where `reduce` is not 0 their sum times it.

    tensors: queries and keys, weight, lengths; options: the first six of `Settings`.
    """
    if runs_at_once(*tensors):
        return AlignQueries.apply(options, reduce, *tensors)
    learning = torch.is_grad_enabled()
    query, key, _, _, weight, *lengths = tensors
    loss = torch.ops.fastkd.align_queries(
        *tensors[:5], *lengths, *options, 1.0 if reduce else 0.0,
        learning and (query.requires_grad or key.requires_grad),
        learning and weight.requires_grad,
    )[0]  # fmt: skip
    return loss * reduce if reduce else loss


# From queries and keys, head against head.


def _pairs(
    student_query, student_key, teacher_query, teacher_key, query_lengths, key_lengths, *options
) -> PairAlignment:
    wanted: tuple[bool, ...] = True, False
    return PairAlignment(
        (student_query, student_key),
        (teacher_query, teacher_key),
        query_lengths,
        key_lengths,
        Settings(*options, *wanted),
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
    wanted: tuple[bool, ...] = False, False
    settings = Settings(*options, *wanted)
    call = MapAlignment(student, teacher, weight, query_lengths, key_lengths, settings)
    loss, statistics = call.forward()
    return loss.sum(1), _nothing(loss) if statistics is None else statistics


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


KERNELS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
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
