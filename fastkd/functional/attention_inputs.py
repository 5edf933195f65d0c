"""Checks of what the alignment losses are given; every failure is one line naming an argument."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.errors import InputError
from fastkd.functional.options import AlignmentOptions

CHOICES = {
    "normalization": ("map", "row", "mixture"),
    "padding": ("exclude", "include"),
    "reduction": ("sum", "mean", "none"),
}


@dataclass(frozen=True)
class Extent:
    """What one side's maps measure."""

    side: str
    batch: int
    maps: int
    queries: int
    keys: int
    head_size: int  # 0 for maps
    device: torch.device

    @property
    def cells(self) -> int:
        return self.batch * self.maps * self.queries * self.keys


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
        first = tensors[0]
        if _without_heads(tensor) != _without_heads(first) or tensor.device != first.device:
            raise InputError(
                f"the layers of {name} must agree in device and in all but the heads: "
                f"{tuple(first.shape)} on {first.device}, {tuple(tensor.shape)} on {tensor.device}"
            )
    return tensors


def _without_heads(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0], *tensor.shape[2:])


def _heads(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.shape[1] for tensor in tensors)


def check_attention(side: str, query: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> Extent:
    batch, _, queries, head_size = query[0].shape
    key_batch, _, keys, key_size = key[0].shape
    maps, key_heads = _heads(query), _heads(key)
    if batch != key_batch or head_size != key_size or query[0].device != key[0].device:
        raise InputError(
            f"{side}_query and {side}_key must agree in batch, head size and device: "
            f"{tuple(query[0].shape)} on {query[0].device}, {tuple(key[0].shape)} on "
            f"{key[0].device}"
        )
    if key_heads == 0 or maps % key_heads:
        raise InputError(
            f"{side}_query's {maps} heads must be a multiple of {side}_key's {key_heads}"
        )
    return Extent(side, batch, maps, queries, keys, head_size, query[0].device)


def check_maps(name: str, maps: tuple[Tensor, ...]) -> Extent:
    batch, _, queries, keys = maps[0].shape
    return Extent(name, batch, _heads(maps), queries, keys, 0, maps[0].device)


def check_pair(
    student: Extent, teacher: Extent, weight: Tensor | None, bias: Tensor | None
) -> None:
    for what in ("batch", "queries", "keys", "device"):
        ours, theirs = getattr(student, what), getattr(teacher, what)
        if ours != theirs:
            raise InputError(f"student and teacher must agree in {what}: {ours} and {theirs}")
    if weight is None and student.maps != teacher.maps:
        raise InputError(
            f"without a weight, student and teacher need the same number of maps: "
            f"{student.maps} and {teacher.maps}"
        )
    _check_parameter("weight", weight, (teacher.maps, student.maps), student.device)
    _check_parameter("bias", bias, (teacher.maps,), student.device)


def _check_parameter(
    name: str, value: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must be a floating point tensor, not {kind}")
    if tuple(value.shape) != shape:
        expected = "(teacher maps, student maps)" if len(shape) == 2 else "(teacher maps,)"
        raise InputError(f"{name} must have shape {expected} = {shape}, not {tuple(value.shape)}")
    if value.device != device:
        raise InputError(f"{name} must be on {device}, not {value.device}")


def check_constant(**teacher: tuple[Tensor, ...]) -> None:
    for name, tensors in teacher.items():
        if any(tensor.requires_grad for tensor in tensors):
            raise InputError(
                f"{name} requires grad, but the teacher is a constant: run it under "
                "torch.no_grad() or pass it detached"
            )


def check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise InputError(f"{name} must be one of {', '.join(CHOICES[name])}, not {value!r}")


def check_options(options: AlignmentOptions, student: Extent, bias: Tensor | None) -> None:
    check_choices(
        normalization=options.normalization, padding=options.padding, reduction=options.reduction
    )
    if not 0 < options.temperature < math.inf:
        raise InputError(f"temperature must be positive, not {options.temperature!r}")
    if options.normalization == "mixture" and bias is not None:
        raise InputError("bias: normalization 'mixture' has none")
    if options.normalization == "mixture" and options.temperature != 1:
        raise InputError(
            f"temperature: normalization 'mixture' has none, but got {options.temperature!r}"
        )
    if options.causal and student.queries != student.keys:
        raise InputError(
            f"causal needs as many queries as keys, not {student.queries} and {student.keys}"
        )


def scale(name: str, value: float | None, head_size: int) -> float:
    if value is None:
        return 1 / math.sqrt(max(head_size, 1))
    value = float(value)
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, not {value}")
    return value


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
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return value.clamp(0, longest)
    least, most = (int(value.min()), int(value.max())) if batch else (longest, longest)
    if least < 0 or most > longest:
        raise InputError(f"{name} must be in 0..{longest}, not {least}..{most}")
    return value if least < longest else None


def refuse_other_attention(**features) -> None:
    for name, value in features.items():
        if value is not None and value is not False:
            raise InputError(
                f"{name}: queries and keys alone do not give the maps of such attention; pass the "
                "maps to alignment_loss_from_maps"
            )


def constants(teacher: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of `torch.inference_mode`, which autograd does not keep, copies."""
    if torch.compiler.is_compiling():
        return tuple(teacher)
    return tuple(layer.clone() if layer.is_inference() else layer for layer in teacher)


def nothing_to_compare(
    learned: Sequence[Tensor | None],
    teacher: Sequence[Tensor],
    teacher_maps: int,
    options: AlignmentOptions,
) -> Tensor:
    """The loss of inputs without a single cell: zero, with gradients of zeros."""
    tensors = [tensor for tensor in learned if tensor is not None]
    shape = (len(teacher[0]), teacher_maps) if options.reduction == "none" else ()
    double = any(tensor.dtype == torch.float64 for tensor in (*tensors, *teacher))
    zero = tensors[0].new_zeros(shape, dtype=torch.float64 if double else torch.float32)
    for tensor in tensors:
        if tensor.requires_grad:
            zero = zero + tensor[..., :0].sum().to(zero.dtype)  # of nothing, whatever is there
    return zero
