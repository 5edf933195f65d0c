"""Attention alignment by the fused Triton kernels of `fastkd_kernels`."""

from collections.abc import Sequence

import torch
from fastkd_kernels.attention.config import PAIR_SIZES
from fastkd_kernels.attention.operators import align_queries
from fastkd_kernels.common import unsupported
from torch import Tensor

from fastkd import watching
from fastkd.backends.attention.precision import autocast_dtype, operand_dtype
from fastkd.backends.early import not_first_order
from fastkd.functional.calls import AlignmentCall, AlignmentOptions, Maps, QueryKey

HEAD_SIZE = PAIR_SIZES[-1]


def unavailable(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> str | None:
    """Why the kernels cannot serve the call, or None."""
    reason: str | None = not_first_order(*call.student.tensors, call.weight)
    if reason is not None:
        return reason
    reason = unsupported(
        *call.student.tensors, *call.teacher.tensors, anywhere=watching.pretended().fused
    )
    if reason is None and call.mask is not None:
        return "the kernels take lengths, not masks"
    if reason is None and call.weight is not None and call.weight.dtype == torch.float64:
        return "the kernels take float16, bfloat16 and float32, not a weight of float64"
    sides = (call.student, call.teacher)
    largest = max(side.query[0].shape[3] if isinstance(side, QueryKey) else 0 for side in sides)
    if reason is None and largest > HEAD_SIZE:
        return f"the kernels take head sizes up to {HEAD_SIZE}, not {largest}"
    return reason


def query_key_loss(call: AlignmentCall[QueryKey]) -> Tensor:
    student, teacher, options = call.student, call.teacher, call.options
    query, key = _operands(student)
    constants = _operands(teacher)
    settings = _settings(call, student.scale, teacher.scale, query)
    if call.weight is None:
        loss = torch.ops.fastkd.align_pairs(query, key, *constants, *settings)[0]
        return _reduced(loss, call)
    weight = _weight(call.weight, options)
    reduce = {"none": 0.0, "sum": 1.0, "mean": 1.0 / query.shape[0]}[options.reduction]
    lengths, chosen = settings[:2], settings[2:]
    return _with_bias(
        align_queries((query, key, *constants, weight, *lengths), chosen, reduce), call.bias
    )


def map_loss(call: AlignmentCall[Maps]) -> Tensor:
    student, teacher = _joined(call.student.layers), _joined(call.teacher.layers)
    weight = None if call.weight is None else _weight(call.weight, call.options)
    settings = _settings(call, 1.0, 1.0, student)
    loss = torch.ops.fastkd.align_maps(student, teacher, weight, *settings)[0]
    return _reduced(loss, call)


def _joined(layers: Sequence[Tensor]) -> Tensor:
    return layers[0] if len(layers) == 1 else torch.cat(tuple(layers), 1)


def _operands(side: QueryKey) -> tuple[Tensor, Tensor]:
    pair = _joined(side.query), _joined(side.key)
    autocast = autocast_dtype(pair[0].device.type)
    first, second = (operand_dtype(tensor, autocast) for tensor in pair)
    dtype = first if first == second else torch.promote_types(first, second)
    return pair[0].to(dtype), pair[1].to(dtype)


def _settings(
    call: AlignmentCall[QueryKey] | AlignmentCall[Maps],
    student_scale: float,
    teacher_scale: float,
    beside: Tensor,
) -> tuple[Tensor | None, Tensor | None, float, float, bool, str, float, bool]:
    """The operators' arguments from `query_lengths` to `include`."""
    options = call.options
    return (
        _lengths(call.query_lengths, beside),
        _lengths(call.key_lengths, beside),
        student_scale,
        teacher_scale,
        options.causal,
        options.normalization,
        options.temperature,
        options.padding == "include",
    )


def _lengths(lengths: Tensor | None, beside: Tensor) -> Tensor | None:
    return None if lengths is None else lengths.to(beside.device, non_blocking=True)


def _weight(weight: Tensor, options: AlignmentOptions) -> Tensor:
    weight = weight.float()
    return weight.softmax(1) if options.normalization == "mixture" else weight


def _reduced(loss: Tensor, call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> Tensor:
    """loss: (B, Nt)"""
    loss = _with_bias(loss, call.bias)
    if call.options.reduction != "none":
        loss = loss.sum()
    batch = call.student.tensors[0].shape[0]
    return loss / batch if call.options.reduction == "mean" else loss


def _with_bias(loss: Tensor, bias: Tensor | None) -> Tensor:
    """`loss`, which no bias changes, and which gives it a gradient of zeros."""
    if bias is None:
        return loss
    return loss + (0 * bias if loss.dim() else (0 * bias).sum())
