"""The alignment kernels of maps as PyTorch operators, like those of `operators`."""

import torch
from torch import Tensor

from fastkd_kernels.attention.mixing import maps
from fastkd_kernels.attention.mixing.launch import Settings
from fastkd_kernels.attention.numerics import STATISTICS
from fastkd_kernels.attention.operators import (
    OPTIONS,
    SECOND_ORDER,
    WANTED,
    nothing,
    operator,
    softened,
)
from fastkd_kernels.attention.query_key.request import Layout
from fastkd_kernels.once import only_first_order, runs_at_once

MAPS = "Tensor student, Tensor teacher, Tensor? weight"
NAMES = ("student_maps", "teacher_maps", "weight", "query_lengths", "key_lengths")


def _maps(tensors, settings, reduce=0.0) -> maps.MapAlignment:
    student, teacher, weight, query_lengths, key_lengths = tensors
    request = maps.Request(
        Layout.of(student),
        Layout.of(teacher),
        weight is not None,
        (query_lengths is not None, key_lengths is not None),
        settings,
        reduce,
        student.device,
    )
    return maps.planned(request)


def _map_tensors(student, teacher, weight, *lengths) -> tuple[Tensor | None, ...]:
    return student, teacher, None if weight is None else weight.contiguous(), *lengths


def _align_maps_fake(student, teacher, weight, query_lengths, key_lengths, *options):
    batch, heads, queries, _ = teacher.shape
    rows = {"row": queries, "map": 1}.get(options[3])
    shape = (batch, STATISTICS.value, heads, rows) if rows else (0,)
    return (
        teacher.new_empty((batch, heads), dtype=torch.float32),
        teacher.new_empty(shape, dtype=torch.float32),
    )


@operator("align_maps", f"({MAPS}, {OPTIONS}) -> (Tensor, Tensor)", _align_maps_fake)
def align_maps_op(*inputs):
    wanted: tuple[bool, ...] = False, False
    tensors = _map_tensors(*inputs[:5])
    plan = _maps(tensors, Settings(*inputs[5:], *wanted))
    loss, statistics = plan.forward(dict(zip(NAMES, tensors, strict=True)))
    return loss, nothing(loss) if statistics is None else statistics


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


align_maps_op.register_autograd(  # type: ignore[attr-defined]
    _align_maps_backward, setup_context=_align_maps_setup
)


def _align_maps_bwd_fake(upstream, statistics, student, teacher, weight, *options):
    *_, gradient, weight_gradient = options
    return (
        student.new_empty(student.shape) if gradient else nothing(upstream),
        weight.new_empty(weight.shape) if weight_gradient else nothing(upstream),
    )


@operator(
    "align_maps_bwd",
    f"(Tensor upstream, Tensor statistics, {MAPS}, {OPTIONS}, {WANTED}) -> (Tensor, Tensor)",
    _align_maps_bwd_fake,
)
def align_maps_bwd_op(upstream, statistics, *inputs):
    tensors = _map_tensors(*inputs[:5])
    known = {"statistics": statistics if statistics.numel() else None, "upstream": upstream}
    given = dict(zip(NAMES, tensors, strict=True)) | known
    found = _maps(tensors, Settings(*inputs[5:])).backward(given)
    return tuple(nothing(upstream) if gradient is None else gradient for gradient in found)


class AlignMaps(torch.autograd.Function):
    """`fastkd::align_maps`, and the sum of its losses, without the way through a dispatcher."""

    @staticmethod
    def forward(ctx, options, reduce, *tensors):
        student, teacher, weight, *lengths = tensors
        mixing, softmax = None, False
        if weight is not None:
            mixing, softmax = softened(weight, options)
        given = (student, teacher, mixing, *lengths)
        wanted: tuple[bool, ...] = ctx.needs_input_grad[2], ctx.needs_input_grad[4], softmax
        ctx.plan = _maps(given, Settings(*options, *wanted), reduce)
        loss, statistics = ctx.plan.forward(dict(zip(NAMES, given, strict=True)))
        ctx.save_for_backward(*given, weight, statistics)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        *given, weight, statistics = ctx.saved_tensors
        known = {"statistics": statistics, "upstream": upstream.contiguous()}
        found = ctx.plan.backward(dict(zip(NAMES, given, strict=True)) | known)
        gradient, change = only_first_order(found, (given[0], weight), SECOND_ORDER)
        return None, None, gradient, None, change, None, None


def align_maps(tensors: tuple[Tensor | None, ...], options: tuple, reduce: float) -> Tensor:
    """As `operators.align_queries`; tensors: the maps of both, weight or None, lengths."""
    if runs_at_once(*tensors):
        return AlignMaps.apply(options, reduce, *tensors)
    student, teacher, weight, *lengths = tensors
    if weight is not None:
        weight, _ = softened(weight, options)
    loss = torch.ops.fastkd.align_maps(student, teacher, weight, *lengths, *options)[0]
    return loss.sum() * reduce if reduce else loss
