"""Attention alignment with a backward of its own, in bounded memory, on any device.

The maps are computed block by block in a workspace of fixed size: a block holds sentences of like
length, or some query rows of a long one, and takes few large matrix products.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd.backends.attention_precision import autocast_dtype, inside_dtype
from fastkd.backends.attention_torch.engine import Problem
from fastkd.backends.attention_torch.function import Call, aligned
from fastkd.backends.attention_torch.maps_given import GivenMaps, LearnedMaps
from fastkd.backends.attention_torch.plan import Plan, Shape
from fastkd.backends.attention_torch.sources import Attention, LearnedAttention, Workspace
from fastkd.functional.options import AlignmentOptions

# Of maps and their gradients, in bytes; on a CPU this stays in the caches.
CPU_WORKSPACE = 8 << 20
DEVICE_WORKSPACE = 64 << 20


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
    learned = (*student_query, *student_key)
    constants = (*teacher_query, *teacher_key)
    inside = inside_dtype((*learned, *constants, weight))
    autocast = autocast_dtype(learned[0].device.type)
    shape = Shape(
        student_query[0].shape[0],
        student_query[0].shape[2],
        student_key[0].shape[2],
        sum(layer.shape[1] for layer in student_query),
        sum(layer.shape[1] for layer in teacher_query),
    )
    size = shape.student_maps * learned[0].shape[3] + shape.teacher_maps * constants[0].shape[3]
    plan = _plan(shape, query_lengths, key_lengths, options, inside, learned[0].device, size)

    def pose(
        learned: tuple[Tensor, ...], weight: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Problem:
        workspace = Workspace(inside, learned[0].device)
        ours, theirs = len(student_query), len(teacher_query)
        student = LearnedAttention(
            "student", learned[:ours], learned[ours:], options.student_scale, workspace, autocast
        )
        teacher = Attention(
            "teacher",
            constants[:theirs],
            constants[theirs:],
            options.teacher_scale,
            workspace,
            autocast,
        )
        return Problem(student, teacher, _mix(weight, options, inside), plan, options, workspace)

    return _aligned(pose, learned, weight, bias, constants, options)


def map_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    options: AlignmentOptions,
) -> Tensor:
    learned, constants = tuple(student_maps), tuple(teacher_maps)
    inside = inside_dtype((*learned, *constants, weight))
    shape = Shape(
        learned[0].shape[0],
        learned[0].shape[2],
        learned[0].shape[3],
        sum(layer.shape[1] for layer in learned),
        sum(layer.shape[1] for layer in constants),
    )
    plan = _plan(shape, query_lengths, key_lengths, options, inside, learned[0].device, 0)

    def pose(
        learned: tuple[Tensor, ...], weight: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Problem:
        workspace = Workspace(inside, learned[0].device)
        student = LearnedMaps("student", learned, workspace)
        teacher = GivenMaps("teacher", constants, workspace)
        return Problem(student, teacher, _mix(weight, options, inside), plan, options, workspace)

    return _aligned(pose, learned, weight, bias, constants, options)


def _plan(
    shape: Shape,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    options: AlignmentOptions,
    inside: torch.dtype,
    device: torch.device,
    row_size: int,
) -> Plan:
    """row_size: numbers that a joined sentence's copied queries take in each row."""
    numbers = 2 * shape.student_maps + 3 * shape.teacher_maps  # of each cell
    budget = CPU_WORKSPACE if device.type == "cpu" else DEVICE_WORKSPACE
    cells = budget // (numbers * inside.itemsize)
    return Plan(shape, query_lengths, key_lengths, options, cells, row_size // numbers, device)


def _mix(weight: Tensor | None, options: AlignmentOptions, inside: torch.dtype) -> Tensor | None:
    if weight is None:
        return None
    weight = weight.detach().to(inside)
    return weight.softmax(1) if options.normalization == "mixture" else weight.contiguous()


def _aligned(pose, learned, weight, bias, constants, options: AlignmentOptions) -> Tensor:
    tensors = [*learned, *(each for each in (weight, bias) if each is not None)]
    grad = torch.is_grad_enabled()
    call = Call(
        pose,
        options.reduction,
        len(learned),
        weight is not None,
        bias is not None,
        tuple(grad and tensor.requires_grad for tensor in tensors),
    )
    return aligned(call, *tensors, *constants)
