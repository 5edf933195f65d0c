"""Attention alignment with a backward of its own, in bounded memory, on any device.

The maps are computed block by block in a workspace of fixed size: a block holds sentences of like
length, or some query rows of a long one, and takes few large matrix products. On a CPU in float32
a compiled kernel does the same work, where it can be built (`native`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd.backends.attention.precision import autocast_dtype, inside_dtype
from fastkd.backends.attention.torch.batch import Batch
from fastkd.backends.attention.torch.divergence import EVEN
from fastkd.backends.attention.torch.engine import Problem
from fastkd.backends.attention.torch.function import Call, Pose, aligned
from fastkd.backends.attention.torch.maps_given import GivenMaps, LearnedMaps
from fastkd.backends.attention.torch.sources import Attention, LearnedAttention, Workspace
from fastkd.functional.options import AlignmentOptions

# Bytes for the maps of a block and what becomes of them; on a CPU this stays in the caches.
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
    queries, keys = student_query[0].shape[2], student_key[0].shape[2]
    batch = _batch(student_query, teacher_query, queries, keys, query_lengths, key_lengths, options)

    def pose(
        learned: tuple[Tensor, ...], weight: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Problem:
        workspace = Workspace(inside, batch.device)
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
        mix = _mix(weight, options, inside)
        even = _is_even(mix, options)
        return Problem(student, teacher, mix, batch, options, workspace, _numbers(workspace), even)

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
    queries, keys = learned[0].shape[2:]
    batch = _batch(learned, constants, queries, keys, query_lengths, key_lengths, options)

    def pose(
        learned: tuple[Tensor, ...], weight: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Problem:
        workspace = Workspace(inside, batch.device)
        student = LearnedMaps("student", learned, workspace)
        teacher = GivenMaps("teacher", constants, workspace)
        mix = _mix(weight, options, inside)
        return Problem(student, teacher, mix, batch, options, workspace, _numbers(workspace), False)

    return _aligned(pose, learned, weight, bias, constants, options)


def _batch(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    queries: int,
    keys: int,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    options: AlignmentOptions,
) -> Batch:
    return Batch(
        student[0].shape[0],
        queries,
        keys,
        sum(layer.shape[1] for layer in student),
        sum(layer.shape[1] for layer in teacher),
        query_lengths,
        key_lengths,
        options.causal,
        options.padding == "include",
        student[0].device,
    )


def _numbers(workspace: Workspace) -> int:
    size = CPU_WORKSPACE if workspace.device.type == "cpu" else DEVICE_WORKSPACE
    return size // workspace.dtype.itemsize


def _mix(weight: Tensor | None, options: AlignmentOptions, inside: torch.dtype) -> Tensor | None:
    if weight is None:
        return None
    weight = weight.detach().to(inside)
    return weight.softmax(1) if options.normalization == "mixture" else weight.contiguous()


def _is_even(weight: Tensor | None, options: AlignmentOptions) -> bool:
    """Whether exponents are known to be small; elsewhere than on a CPU nobody may ask."""
    reach = 1.0
    if weight is not None:
        if weight.device.type != "cpu":
            return False
        reach = max(reach, float(weight.abs().sum(1).max()))
    return reach <= EVEN * options.temperature


def _aligned(
    pose: Pose,
    learned: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    constants: tuple[Tensor, ...],
    options: AlignmentOptions,
) -> Tensor:
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
