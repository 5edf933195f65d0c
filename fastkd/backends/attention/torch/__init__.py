"""Attention alignment with a backward of its own, in bounded memory, on any device.

The maps are computed block by block in a workspace of fixed size: a block holds sentences of like
length, or some query rows of a long one, and takes few large matrix products. On a CPU in float32
a compiled kernel does the same work, where it can be built (`native`).
"""

import torch
from torch import Tensor

from fastkd.backends.attention.precision import autocast_dtype, inside_dtype
from fastkd.backends.attention.torch.batch import Batch
from fastkd.backends.attention.torch.divergence import EVEN
from fastkd.backends.attention.torch.engine import Problem
from fastkd.backends.attention.torch.function import Call, Pose, aligned
from fastkd.backends.attention.torch.maps_given import GivenMaps, LearnedMaps
from fastkd.backends.attention.torch.operator import define, traced_loss
from fastkd.backends.attention.torch.sources import Attention, LearnedAttention, Workspace
from fastkd.backends.early import not_first_order
from fastkd.functional.calls import AlignmentCall, AlignmentOptions, Maps, QueryKey

Layers = tuple[Tensor, ...]

# Bytes for the maps of a block and what becomes of them; on a CPU this stays in the caches.
CPU_WORKSPACE = 8 << 20
DEVICE_WORKSPACE = 64 << 20


def unavailable(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> str | None:
    """Why the backend cannot serve the call, or None."""
    return not_first_order(*call.student.tensors, call.weight)


def query_key_loss(call: AlignmentCall[QueryKey]) -> Tensor:
    if torch.compiler.is_compiling():
        return traced_loss(call)
    return _aligned(_query_key(call, autocast_dtype(call.student.query[0].device.type)), call)


def map_loss(call: AlignmentCall[Maps]) -> Tensor:
    if torch.compiler.is_compiling():
        return traced_loss(call)
    return _aligned(_maps(call, None), call)


def _query_key(call: AlignmentCall[QueryKey], autocast: torch.dtype | None) -> Pose:
    # What is posed again in backward holds none of the call's large tensors.
    batch, inside, options = _batch(call), inside_dtype(call.tensors), call.options
    ours, theirs = len(call.student.query), len(call.teacher.query)
    scales = call.student.scale, call.teacher.scale

    def pose(learned: Layers, weight: Tensor | None, constants: Layers) -> Problem:
        workspace = Workspace(inside, batch.device)
        query, key = learned[:ours], learned[ours:]
        student = LearnedAttention("student", query, key, scales[0], workspace, autocast)
        query, key = constants[:theirs], constants[theirs:]
        teacher = Attention("teacher", query, key, scales[1], workspace, autocast)
        mix = _mix(weight, options, inside)
        even = _is_even(mix, options)
        return Problem(student, teacher, mix, batch, options, workspace, _numbers(workspace), even)

    return pose


def _maps(call: AlignmentCall[Maps], autocast: torch.dtype | None) -> Pose:
    batch, inside, options = _batch(call), inside_dtype(call.tensors), call.options

    def pose(learned: Layers, weight: Tensor | None, constants: Layers) -> Problem:
        workspace = Workspace(inside, batch.device)
        student = LearnedMaps("student", learned, workspace)
        teacher = GivenMaps("teacher", constants, workspace)
        mix = _mix(weight, options, inside)
        return Problem(student, teacher, mix, batch, options, workspace, _numbers(workspace), False)

    return pose


def _batch(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> Batch:
    first = call.student.tensors[0]
    return Batch(
        first.shape[0],
        call.student.queries,
        call.student.keys,
        call.student.maps,
        call.teacher.maps,
        call.query_lengths,
        call.key_lengths,
        call.mask,
        call.options.causal,
        call.options.padding == "include",
        first.device,
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


def _aligned(pose: Pose, call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> Tensor:
    learned = call.student.tensors
    parameters = [each for each in (call.weight, call.bias) if each is not None]
    grad = torch.is_grad_enabled()
    posed = Call(
        pose,
        call.options.reduction,
        len(learned),
        call.weight is not None,
        call.bias is not None,
        tuple(grad and tensor.requires_grad for tensor in (*learned, *parameters)),
    )
    return aligned(posed, *learned, *parameters, *call.teacher.tensors)


define(_query_key, _maps)
