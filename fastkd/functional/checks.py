"""Checks of what the losses are given; every failure is one line naming an argument.

Values are checked where they are on the CPU; elsewhere that would wait for the device.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastkd import watching
from fastkd.errors import InputError
from fastkd.functional.calls import AlignmentCall, AlignmentOptions, Maps, QueryKey
from fastkd.functional.divided import is_divided

REDUCTIONS = ("sum", "mean", "none")
ALIGNMENT_REDUCTIONS = (*REDUCTIONS, "rows")
NORMALIZATIONS = ("map", "row", "mixture")
PADDINGS = ("exclude", "include")


def floating(name: str, value: object) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{name} must be a floating point tensor, not {_kind(value)}")


def integers(name: str, value: object) -> None:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()
    if not whole or (isinstance(value, Tensor) and value.dtype == torch.bool):
        raise InputError(f"{name} must be an integer tensor, not {_kind(value)}")


def constant(**teacher: Tensor | None) -> None:
    for name, value in teacher.items():
        if value is not None and value.requires_grad:
            raise InputError(
                f"{name} requires grad, but the teacher is a constant: run it under "
                "torch.no_grad() or pass it detached"
            )


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def finite(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {value!r}")


def positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a positive number, not {value!r}")


def whole(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, not {value!r}")


def readable(tensor: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not watching.pretended().fused
        and not is_mapped(tensor)
    )


def is_mapped(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` runs over it, at any level."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def undivided(name: str, value: Tensor) -> None:
    if is_divided(value):
        raise InputError(
            f"{name} must be a plain tensor, not a DTensor: of this process's share, as to_local() "
            "gives it, or of all, as full_tensor() does"
        )


def divided_alike(tensors: Mapping[str, Tensor | None]) -> None:
    """DTensors stand beside DTensors alone."""
    given = {name: value for name, value in tensors.items() if value is not None}
    divided = [name for name, value in given.items() if is_divided(value)]
    if divided and len(divided) < len(given):
        plain = next(name for name in given if name not in divided)
        raise InputError(
            f"{plain} must be a DTensor as {divided[0]} is, or both plain tensors, as "
            "full_tensor() gives them"
        )


def on(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise InputError(f"{name} must be on {device}, not {value.device}")


# Attention alignment.


def layers(name: str, value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`value` as a tuple of per-layer tensors (B, heads, ., .) that agree but for the heads."""
    tensors = (value,) if isinstance(value, Tensor) else tuple(value)
    if not tensors:
        raise InputError(f"{name} holds no tensor")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} must hold tensors, not {type(tensor).__name__}")
        if tensor.dim() != 4:
            raise InputError(f"{name} must have 4 dimensions, not shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise InputError(f"{name} must be floating point, not {tensor.dtype}")
        undivided(name, tensor)
        first = tensors[0]
        if _without_heads(tensor) != _without_heads(first) or tensor.device != first.device:
            raise InputError(
                f"the layers of {name} must agree in device and in all but the heads: "
                f"{tuple(first.shape)} on {first.device}, {tuple(tensor.shape)} on {tensor.device}"
            )
    return tensors


def _without_heads(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0], *tensor.shape[2:])


def lengths(name: str, value: Tensor | None, batch: int, longest: int) -> Tensor | None:
    """`value` as int64, or None where it is on the CPU and holds no padding.

    Values are checked where they are on the CPU; elsewhere they are clamped, which needs no
    synchronisation.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"{name} must be integers, not {value.dtype}")
    if tuple(value.shape) != (batch,):
        raise InputError(
            f"{name} must have shape (batch,) = ({batch},), not {tuple(value.shape)}; attention "
            "with left padding or another mask goes through alignment_loss_from_maps"
        )
    value = value.to(torch.int64)
    if not readable(value):
        return value.clamp(0, longest)
    least, most = (int(value.min()), int(value.max())) if batch else (longest, longest)
    if least < 0 or most > longest:
        raise InputError(f"{name} must be in 0..{longest}, not {least}..{most}")
    return value if least < longest else None


def mask(
    name: str,
    value: object,
    shape: tuple[int, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise InputError(f"{name} must be a bool tensor, not {_kind(value)}")
    if shape is not None and tuple(value.shape) != shape:
        raise InputError(f"{name} must have shape {shape}, not {tuple(value.shape)}")
    if device is not None:
        on(name, value, device)


def query_key(side: str, query: Sequence[Tensor], key: Sequence[Tensor]) -> None:
    first, other = query[0], key[0]
    agree = first.shape[0] == other.shape[0] and first.shape[3] == other.shape[3]
    if not agree or first.device != other.device:
        raise InputError(
            f"{side}_query and {side}_key must agree in batch, head size and device: "
            f"{tuple(first.shape)} on {first.device}, {tuple(other.shape)} on {other.device}"
        )
    maps, key_heads = (sum(layer.shape[1] for layer in layers) for layers in (query, key))
    if key_heads == 0 or maps % key_heads:
        raise InputError(
            f"{side}_query's {maps} heads must be a multiple of {side}_key's {key_heads}"
        )


def alignment(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> None:
    """Everything about a call whose sides are each in order."""
    student, teacher, weight, bias = call.student, call.teacher, call.weight, call.bias
    ours, theirs = student.tensors[0], teacher.tensors[0]
    for what, mine, other in (
        ("batch", ours.shape[0], theirs.shape[0]),
        ("queries", student.queries, teacher.queries),
        ("keys", student.keys, teacher.keys),
        ("device", ours.device, theirs.device),
    ):
        if mine != other:
            raise InputError(f"student and teacher must agree in {what}: {mine} and {other}")
    if weight is None and student.maps != teacher.maps:
        raise InputError(
            f"without a weight, student and teacher need the same number of maps: "
            f"{student.maps} and {teacher.maps}"
        )
    shape = (teacher.maps, student.maps)
    _parameter("weight", weight, "(teacher maps, student maps)", shape, ours.device)
    _parameter("bias", bias, "(teacher maps,)", shape[:1], ours.device)
    alignment_options(call.options, bias is not None)
    if call.options.causal and student.queries != student.keys:
        raise InputError(
            f"causal needs as many queries as keys, not {student.queries} and {student.keys}"
        )


def _parameter(
    name: str, value: Tensor | None, expected: str, shape: tuple[int, ...], device: torch.device
) -> None:
    if value is None:
        return
    floating(name, value)
    if tuple(value.shape) != shape:
        raise InputError(f"{name} must have shape {expected} = {shape}, not {tuple(value.shape)}")
    on(name, value, device)


def alignment_options(options: AlignmentOptions, bias: bool) -> None:
    one_of("normalization", options.normalization, NORMALIZATIONS)
    one_of("padding", options.padding, PADDINGS)
    one_of("reduction", options.reduction, ALIGNMENT_REDUCTIONS)
    positive("temperature", options.temperature)
    if options.normalization == "mixture" and bias:
        raise InputError("bias: normalization 'mixture' has none")
    if options.normalization == "mixture" and options.temperature != 1:
        raise InputError(
            f"temperature: normalization 'mixture' has none, but got {options.temperature!r}"
        )
