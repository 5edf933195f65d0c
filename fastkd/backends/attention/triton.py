"""Attention alignment by the fused Triton kernels of `fastkd_kernels`."""

from collections.abc import Sequence

import torch
from fastkd_kernels.attention.config import PAIR_SIZES
from fastkd_kernels.attention.map_operators import align_maps
from fastkd_kernels.attention.operators import align_pairs, align_queries
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
    student, teacher = call.student, call.teacher
    operands = (*_operands(student), *_operands(teacher))
    lengths = _lengths(call, operands[0])
    options = _options(call.options, student.scale, teacher.scale)
    reduce = _reduce(call.options, operands[0])
    if call.weight is None:
        loss = align_pairs((*operands, *lengths), options, reduce)
    else:
        loss = align_queries((*operands, call.weight.float(), *lengths), options, reduce)
    return _with_bias(loss, call.bias)


def map_loss(call: AlignmentCall[Maps]) -> Tensor:
    student, teacher = _joined(call.student.layers), _joined(call.teacher.layers)
    weight = None if call.weight is None else call.weight.float()
    tensors = (student, teacher, weight, *_lengths(call, student))
    reduce = _reduce(call.options, student)
    return _with_bias(align_maps(tensors, _options(call.options, 1.0, 1.0), reduce), call.bias)


def _joined(layers: Sequence[Tensor]) -> Tensor:
    return layers[0] if len(layers) == 1 else torch.cat(tuple(layers), 1)


def _operands(side: QueryKey) -> tuple[Tensor, Tensor]:
    pair = _joined(side.query), _joined(side.key)
    autocast = autocast_dtype(pair[0].device.type)
    first, second = (operand_dtype(tensor, autocast) for tensor in pair)
    dtype = first if first == second else torch.promote_types(first, second)
    return pair[0].to(dtype), pair[1].to(dtype)


def _options(
    options: AlignmentOptions, student_scale: float, teacher_scale: float
) -> tuple[float, float, bool, str, float, bool]:
    """The operators' arguments from `student_scale` to `include`."""
    return (
        student_scale,
        teacher_scale,
        options.causal,
        options.normalization,
        options.temperature,
        options.padding == "include",
    )


def _reduce(options: AlignmentOptions, beside: Tensor) -> float:
    """What the sum of all losses is multiplied by; 0: they stay apart."""
    return {"none": 0.0, "sum": 1.0, "mean": 1.0 / beside.shape[0]}[options.reduction]


def _lengths(
    call: AlignmentCall[QueryKey] | AlignmentCall[Maps], beside: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    def moved(lengths: Tensor | None) -> Tensor | None:
        return None if lengths is None else lengths.to(beside.device, non_blocking=True)

    return moved(call.query_lengths), moved(call.key_lengths)


def _with_bias(loss: Tensor, bias: Tensor | None) -> Tensor:
    """`loss`, which no bias changes, and which gives it a gradient of zeros."""
    if bias is None:
        return loss
    return loss + (0 * bias if loss.dim() else (0 * bias).sum())
