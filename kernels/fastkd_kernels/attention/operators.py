"""The attention alignment kernels as PyTorch operators, with gradients and shapes for compilers.

Operators `fastkd::align_*` return losses by sentence and teacher map, (B, Nt) in float32, or,
with `reduce`, their sum times it. From queries and keys a reduced loss takes its gradients in the
forward walk, while the maps are at hand, and backward only scales them. Where no compiler traces,
an autograd Function stands in place of each operator.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastkd_kernels.attention.mixing.launch import Settings
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.pairs import alignment as pairs
from fastkd_kernels.attention.query_key.alignment import align
from fastkd_kernels.attention.query_key.request import Layout
from fastkd_kernels.once import early_dtype, only_first_order, runs_at_once
from fastkd_kernels.scaling import scaled_gradients

OPTIONS = (
    "Tensor? query_lengths, Tensor? key_lengths, float student_scale, float teacher_scale, "
    "bool causal, str normalization, float temperature, bool include"
)
QUERIES = "Tensor student_query, Tensor student_key, Tensor teacher_query, Tensor teacher_key"
WANTED = "bool gradient, bool weight_gradient"
SECOND_ORDER = (
    "the triton backend has no second-order gradient of the attention alignment loss: "
    "use backend='reference'"
)


def operator(name: str, schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Registers a function as `fastkd::name`."""

    def register(function: Callable) -> Callable:
        made = torch.library.custom_op(f"fastkd::{name}", function, mutates_args=(), schema=schema)
        made.register_fake(fake)
        return made

    return register


def nothing(like: Tensor) -> Tensor:
    """Operators return tensors: an empty one stands for a gradient that nobody asked for."""
    return like.new_empty(0, dtype=torch.float32)


def softened(weight: Tensor, options: tuple) -> tuple[Tensor, bool]:
    """(what maps are mixed with, whether it is the weight's softmax)."""
    softmax = options[3] == "mixture"
    return (weight.softmax(1) if softmax else weight.contiguous()), softmax


# From queries and keys, with a weight.

NAMES = ("student_query", "student_key", "teacher_query", "teacher_key", "weight")
# What `AlignQueries` takes: by NAMES, then the lengths of queries and of keys.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def _aligned(inputs, settings, reduce, upstream, dtype) -> tuple[Tensor | None, ...]:
    *queries, weight, query_lengths, key_lengths = inputs
    tensors = dict(zip(NAMES, (*queries, weight), strict=True))
    optional = {"query_lengths": query_lengths, "key_lengths": key_lengths, "upstream": upstream}
    return align(tensors, optional, settings, reduce, dtype)


def _align_queries_fake(student_query, student_key, teacher_query, teacher_key, weight, *options):
    *_, reduce, gradient, weight_gradient = options
    shape = () if reduce else (student_query.shape[0], teacher_query.shape[1])
    dtype = early_dtype(student_query.dtype)
    return (
        weight.new_empty(shape, dtype=torch.float32),
        student_query.new_empty(student_query.shape, dtype=dtype) if gradient else nothing(weight),
        student_key.new_empty(student_key.shape, dtype=dtype) if gradient else nothing(weight),
        weight.new_empty(weight.shape) if weight_gradient else nothing(weight),
    )


@operator(
    "align_queries",
    f"({QUERIES}, Tensor weight, {OPTIONS}, float reduce, {WANTED}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _align_queries_fake,
)
def align_queries_op(*inputs):
    *options, reduce, gradient, weight_gradient = inputs[7:]
    tensors = (*inputs[:4], inputs[4].contiguous(), *inputs[5:7])
    wanted: tuple[bool, ...] = gradient, weight_gradient
    settings = Settings(*options, *wanted)
    found = _aligned(tensors, settings, reduce, None, early_dtype(inputs[0].dtype))
    return tuple(nothing(inputs[4]) if each is None else each for each in found)


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


align_queries_op.register_autograd(  # type: ignore[attr-defined]
    _align_queries_backward, setup_context=_align_queries_setup
)


def _align_queries_bwd_fake(
    upstream, student_query, student_key, teacher_query, teacher_key, weight, *options
):
    *_, gradient, weight_gradient = options
    return (
        student_query.new_empty(student_query.shape) if gradient else nothing(weight),
        student_key.new_empty(student_key.shape) if gradient else nothing(weight),
        weight.new_empty(weight.shape) if weight_gradient else nothing(weight),
    )


@operator(
    "align_queries_bwd",
    f"(Tensor upstream, {QUERIES}, Tensor weight, {OPTIONS}, {WANTED}) -> (Tensor, Tensor, Tensor)",
    _align_queries_bwd_fake,
)
def align_queries_bwd_op(upstream, *inputs):
    tensors = (*inputs[:4], inputs[4].contiguous(), *inputs[5:7])
    settings = Settings(*inputs[7:])
    found = _aligned(tensors, settings, 0.0, upstream.float(), inputs[0].dtype)
    return tuple(nothing(inputs[4]) if each is None else each for each in found[1:])


class AlignQueries(torch.autograd.Function):
    """`fastkd::align_queries` without the way through a dispatcher."""

    @staticmethod
    def forward(ctx, options, reduce, *tensors):
        *queries, weight, query_lengths, key_lengths = tensors
        weight, softmax = softened(weight, options)
        wanted: tuple[bool, ...] = (
            ctx.needs_input_grad[2] or ctx.needs_input_grad[3],
            ctx.needs_input_grad[6],
            softmax,
        )
        given = (*queries, weight, query_lengths, key_lengths)
        settings = Settings(*options, *wanted)
        dtype = early_dtype(tensors[0].dtype)
        loss, *found = _aligned(given, settings, reduce, None, dtype)
        ctx.settings, ctx.reduce = settings, reduce
        ctx.save_for_backward(*tensors, weight, *found)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        *tensors, weight, query, key, change = ctx.saved_tensors
        learned = tensors[0], tensors[1], tensors[4]
        if ctx.reduce:
            found = scaled_gradients(upstream, (query, key, change), learned)
        else:
            upstream = upstream.contiguous().float()
            given = (*tensors[:4], weight, *tensors[5:])
            _, *found = _aligned(given, ctx.settings, 0.0, upstream, tensors[0].dtype)
        query, key, change = only_first_order(found, learned, SECOND_ORDER)
        return None, None, query, key, None, None, change, None, None


def align_queries(tensors: Inputs, options: tuple, reduce: float) -> Tensor:
    """Losses by sentence and teacher map, (B, Nt), or where `reduce` is not 0 their sum times it.

    tensors: queries and keys, weight, lengths; options: the first six of `Settings`.
    """
    if runs_at_once(*tensors):
        return AlignQueries.apply(options, reduce, *tensors)
    learning = torch.is_grad_enabled()
    query, key, teacher_query, teacher_key, weight, *lengths = tensors
    weight, _ = softened(weight, options)
    loss = torch.ops.fastkd.align_queries(
        query, key, teacher_query, teacher_key, weight, *lengths, *options, 1.0 if reduce else 0.0,
        learning and (query.requires_grad or key.requires_grad),
        learning and weight.requires_grad,
    )[0]  # fmt: skip
    return loss * reduce if reduce else loss


# From queries and keys, head against head.

PAIR_NAMES = (*pairs.NAMES, "query_lengths", "key_lengths")


def _pairs(tensors, options, reduce=0.0) -> pairs.PairAlignment:
    student_query, student_key, teacher_query, teacher_key, query_lengths, key_lengths = tensors
    wanted: tuple[bool, ...] = True, False
    request = pairs.Request(
        (Layout.of(student_query), Layout.of(student_key)),
        (Layout.of(teacher_query), Layout.of(teacher_key)),
        (query_lengths is not None, key_lengths is not None),
        Settings(*options, *wanted),
        reduce,
        student_query.device,
    )
    return pairs.planned(request)


def _align_pairs_fake(student_query, *inputs):
    batch, heads, queries, _ = student_query.shape
    groups = {"mixture": 0, "row": queries, "map": 1}[inputs[-3]]
    return (
        student_query.new_empty((batch, heads), dtype=torch.float32),
        student_query.new_empty((batch, heads, 5, queries), dtype=torch.float32),
        student_query.new_empty((batch, STATISTICS.value, heads, groups), dtype=torch.float32),
    )


@operator("align_pairs", f"({QUERIES}, {OPTIONS}) -> (Tensor, Tensor, Tensor)", _align_pairs_fake)
def align_pairs_op(*inputs):
    tensors = inputs[:6]
    return _pairs(tensors, inputs[6:]).forward(dict(zip(PAIR_NAMES, tensors, strict=True)))


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


align_pairs_op.register_autograd(  # type: ignore[attr-defined]
    _align_pairs_backward, setup_context=_align_pairs_setup
)


def _align_pairs_bwd_fake(upstream, logs, statistics, student_query, student_key, *inputs):
    return student_query.new_empty(student_query.shape), student_key.new_empty(student_key.shape)


@operator(
    "align_pairs_bwd",
    f"(Tensor upstream, Tensor logs, Tensor statistics, {QUERIES}, {OPTIONS}) -> (Tensor, Tensor)",
    _align_pairs_bwd_fake,
)
def align_pairs_bwd_op(upstream, logs, statistics, *inputs):
    tensors = inputs[:6]
    known = {"logs": logs, "statistics": statistics, "upstream": upstream}
    given = dict(zip(PAIR_NAMES, tensors, strict=True)) | known
    return _pairs(tensors, inputs[6:]).backward(given)


class AlignPairs(torch.autograd.Function):
    """`fastkd::align_pairs`, and the sum of its losses, without the way through a dispatcher."""

    @staticmethod
    def forward(ctx, options, reduce, *tensors):
        ctx.plan = _pairs(tensors, options, reduce)
        loss, *known = ctx.plan.forward(dict(zip(PAIR_NAMES, tensors, strict=True)))
        ctx.save_for_backward(*tensors, *known)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        *tensors, logs, statistics = ctx.saved_tensors
        known = {"logs": logs, "statistics": statistics, "upstream": upstream.contiguous()}
        found = ctx.plan.backward(dict(zip(PAIR_NAMES, tensors, strict=True)) | known)
        query, key = only_first_order(found, tensors[:2], SECOND_ORDER)
        return None, None, query, key, None, None, None, None


def align_pairs(tensors: tuple[Tensor | None, ...], options: tuple, reduce: float) -> Tensor:
    """As `align_queries`, head n with head n, (B, N); tensors: queries and keys, lengths."""
    if runs_at_once(*tensors):
        return AlignPairs.apply(options, reduce, *tensors)
    loss = torch.ops.fastkd.align_pairs(*tensors, *options)[0]
    return loss.sum() * reduce if reduce else loss
