"""Attention alignment by the fused Triton kernels of `fastkd_kernels`."""

from collections.abc import Sequence

import fastkd_kernels.attention.operators  # noqa: F401  (registers them)
import torch
from fastkd_kernels.attention.config import PAIR_SIZES
from fastkd_kernels.common import unsupported
from torch import Tensor

from fastkd import watching
from fastkd.backends.attention.precision import autocast_dtype, operand_dtype
from fastkd.functional.options import AlignmentOptions

HEAD_SIZE = PAIR_SIZES[-1]


def unavailable(
    tensor: Tensor,
    tensors: Sequence[Sequence[Tensor]],
    weight: Tensor | None,
    options: AlignmentOptions,
) -> str | None:
    """Why the kernels cannot serve the call, or None."""
    every = (layer for layers in tensors for layer in layers)
    reason = unsupported(*every, anywhere=watching.pretended().fused)
    if reason is None and weight is not None and weight.dtype == torch.float64:
        reason = "the kernels take float16, bfloat16 and float32, not a weight of float64"
    if reason is None and len(tensors) == 4:  # queries and keys, not maps
        largest = max(layers[0].shape[3] for layers in tensors)
        if largest > HEAD_SIZE:
            reason = f"the kernels take head sizes up to {HEAD_SIZE}, not {largest}"
    return reason


def query_key_loss(
    student_query: Sequence[Tensor],
    student_key: Sequence[Tensor],
    teacher_query: Sequence[Tensor],
    teacher_key: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    options: AlignmentOptions,
) -> Tensor:
    query, key = _operands(student_query, student_key)
    constants = _operands(teacher_query, teacher_key)
    lengths = _lengths(query_lengths, query), _lengths(key_lengths, query)
    settings = (*lengths, options.student_scale, options.teacher_scale, *_settings(options))
    if weight is None:
        loss = torch.ops.fastkd.align_pairs(query, key, *constants, *settings)[0]
        return _reduced(loss, bias, query.shape[0], options)
    weight = _weight(weight, options)
    learning = torch.is_grad_enabled()
    loss = torch.ops.fastkd.align_queries(
        query,
        key,
        *constants,
        weight,
        *settings,
        options.reduction != "none",
        learning and (query.requires_grad or key.requires_grad),
        learning and weight.requires_grad,
    )[0]
    return _reduced(loss, bias, query.shape[0], options)


def map_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    options: AlignmentOptions,
) -> Tensor:
    student, teacher = _joined(student_maps), _joined(teacher_maps)
    weight = None if weight is None else _weight(weight, options)
    lengths = _lengths(query_lengths, student), _lengths(key_lengths, student)
    loss = torch.ops.fastkd.align_maps(
        student, teacher, weight, *lengths, 1.0, 1.0, *_settings(options)
    )[0]
    return _reduced(loss, bias, student.shape[0], options)


def _joined(layers: Sequence[Tensor]) -> Tensor:
    return layers[0] if len(layers) == 1 else torch.cat(tuple(layers), 1)


def _operands(query: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    pair = _joined(query), _joined(key)
    autocast = autocast_dtype(pair[0].device.type)
    dtypes = [operand_dtype(tensor, autocast) for tensor in pair]
    dtype = torch.promote_types(*dtypes)
    return pair[0].to(dtype), pair[1].to(dtype)


def _lengths(lengths: Tensor | None, beside: Tensor) -> Tensor | None:
    return None if lengths is None else lengths.to(beside.device, non_blocking=True)


def _settings(options: AlignmentOptions) -> tuple[bool, str, float, bool]:
    include = options.padding == "include"
    return options.causal, options.normalization, options.temperature, include


def _weight(weight: Tensor, options: AlignmentOptions) -> Tensor:
    weight = weight.float()
    return weight.softmax(1) if options.normalization == "mixture" else weight


def _reduced(loss: Tensor, bias: Tensor | None, batch: int, options: AlignmentOptions) -> Tensor:
    """loss: (B, Nt), or its sum already."""
    if bias is not None:
        loss = loss + (0 * bias if loss.dim() else (0 * bias).sum())
    if options.reduction != "none" and loss.dim():
        loss = loss.sum()
    return loss / batch if options.reduction == "mean" else loss
