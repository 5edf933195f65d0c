"""The definition of the attention alignment losses: autograd PyTorch over whole maps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastkd.backends.attention.precision import (
    SMALLEST,
    autocast_dtype,
    inside_dtype,
    operand_dtype,
)
from fastkd.functional.calls import AlignmentCall, Maps, QueryKey
from fastkd.functional.checks import is_mapped

LARGEST_EXPONENT = 60.0  # exp of it, summed over any map, is finite in float32


def unavailable(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> None:
    """Serves every call."""


def query_key_loss(call: AlignmentCall[QueryKey]) -> Tensor:
    inside, masks = inside_dtype(call.tensors), Masks(call)
    operands = [
        (_operand(side.query, inside), _operand(side.key, inside), side.scale)
        for side in (call.student, call.teacher)
    ]
    with torch.autocast(masks.device.type, enabled=False):
        student, teacher = (_maps(*each, masks) for each in operands)
        return _loss(student, teacher, call, masks)


def map_loss(call: AlignmentCall[Maps]) -> Tensor:
    inside, masks = inside_dtype(call.tensors), Masks(call)
    student, teacher = (
        torch.cat(side.layers, 1).to(inside) for side in (call.student, call.teacher)
    )
    mask = masks.attended() if masks.include else masks.counted()
    with torch.autocast(masks.device.type, enabled=False):
        if mask is not None:
            student, teacher = student.masked_fill(~mask, 0), teacher.masked_fill(~mask, 0)
        return _loss(student, teacher, call, masks)


class Masks:
    """Which cells a query may attend to and which count, (B, 1, Tq, Tk), or None for all."""

    def __init__(self, call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> None:
        first = call.student.tensors[0]
        self.device = first.device
        self.shape = (first.shape[0], 1, call.student.queries, call.student.keys)
        self.query_lengths, self.key_lengths = call.query_lengths, call.key_lengths
        self.causal, self.mask = call.options.causal, call.mask
        self.include = call.options.padding == "include"

    def real_queries(self) -> Tensor | None:
        return _before(self.query_lengths, self.shape[2], self.device)

    def real_keys(self) -> Tensor | None:
        return _before(self.key_lengths, self.shape[3], self.device)

    def attended(self) -> Tensor | None:
        mask = None
        keys = self.real_keys()  # (B, Tk)
        if keys is not None:
            mask = keys[:, None, None, :].expand(self.shape)
        if self.mask is not None:
            mask = self.mask[:, None].expand(self.shape)
        if self.causal:
            past = torch.ones(self.shape[2:], dtype=torch.bool, device=self.device).tril()
            mask = past.expand(self.shape) if mask is None else mask & past
        return mask

    def counted(self) -> Tensor | None:
        if self.include:
            return None
        mask = self.attended()
        queries = self.real_queries()  # (B, Tq)
        if queries is None:
            return mask
        queries = queries[:, None, :, None].expand(self.shape)
        return queries if mask is None else mask & queries


def _before(lengths: Tensor | None, longest: int, device: torch.device) -> Tensor | None:
    if lengths is None:
        return None
    lengths = lengths.to(device, non_blocking=True)
    return torch.arange(longest, device=device) < lengths[:, None]


def _operand(layers: Sequence[Tensor], inside: torch.dtype) -> Tensor:
    tensor = torch.cat(tuple(layers), 1) if len(layers) > 1 else layers[0]
    autocast = autocast_dtype(tensor.device.type)
    return tensor.to(operand_dtype(tensor, autocast)).to(inside)


def _maps(query: Tensor, key: Tensor, scale: float, masks: Masks) -> Tensor:
    """softmax(scale · query @ keyᵀ), zero where not attended, and where not counted."""
    real_queries, real_keys = masks.real_queries(), masks.real_keys()
    if real_queries is not None and not masks.include:
        query = query.masked_fill(~real_queries[:, None, :, None], 0)
    if real_keys is not None:
        key = key.masked_fill(~real_keys[:, None, :, None], 0)
    batch, heads, queries, size = query.shape
    query = query.reshape(batch, key.shape[1], -1, queries, size)  # (B, key heads, group, Tq, D)
    scores = (scale * query @ key.unsqueeze(2).mT).reshape(batch, heads, queries, key.shape[2])
    attended = masks.attended()
    if attended is not None:
        scores = scores.masked_fill(~attended, torch.finfo(scores.dtype).min)
    maps = scores.softmax(-1)
    zero = masks.counted()
    zero = attended if zero is None else zero
    return maps if zero is None else maps.masked_fill(~zero, 0)


def _loss(
    student: Tensor,  # (B, Ns, Tq, Tk)
    teacher: Tensor,  # (B, Nt, Tq, Tk)
    call: AlignmentCall[QueryKey] | AlignmentCall[Maps],
    masks: Masks,
) -> Tensor:
    options, bias = call.options, call.bias
    weight = None if call.weight is None else call.weight.to(student.dtype)
    if options.normalization == "mixture":
        mixed = _mix(student, None if weight is None else weight.softmax(1))
        divergence = _mixture_divergence(teacher, mixed)
    else:
        mixed = _mix(student, weight)
        counted = masks.counted()
        groups = (2, 3) if options.normalization == "map" else (3, 3)
        divergence = _softmax_divergence(
            (teacher / options.temperature).flatten(*groups),
            (mixed / options.temperature).flatten(*groups),
            None if counted is None else counted.flatten(*groups),
        )
    loss = divergence if divergence.dim() == 2 else divergence.flatten(2).sum(2)  # (B, Nt)
    if bias is not None:
        loss = loss + 0 * bias
    if options.reduction == "none":
        return loss
    return loss.sum() / (loss.shape[0] if options.reduction == "mean" else 1)


def _mix(student: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return student
    mixed: Tensor = (weight @ student.flatten(2)).unflatten(2, student.shape[2:])
    return mixed


def _mixture_divergence(teacher: Tensor, mixed: Tensor) -> Tensor:
    return torch.xlogy(teacher, teacher) - teacher * mixed.clamp(min=SMALLEST).log()


def _softmax_divergence(teacher: Tensor, mixed: Tensor, counted: Tensor | None) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(mixed)) over the counted cells of the last dimension.

    With w = softmax(teacher) and d = mixed − teacher, less its mean under w, this is
    log Σ w·exp(d). Where the softmaxes are nearly equal that is far below the rounding error of
    the logarithms of their sums, so it is taken as log1p of a sum of w·(exp(d) − 1 − d) ≥ 0.
    """
    if counted is not None:
        # A group without a counted cell is zeros on both sides, and its divergence 0.
        counted = counted | ~counted.any(-1, keepdim=True)
        teacher = teacher.masked_fill(~counted, -torch.inf)
    # Not softmax, whose float32 sum over millions of cells is off by 1e-3 on a CPU.
    shifted = teacher - teacher.amax(-1, keepdim=True)
    weight = shifted.exp()
    total = weight.sum(-1, keepdim=True)
    weight = weight / total
    difference = mixed - teacher
    if counted is not None:
        difference = difference.masked_fill(~counted, 0)
    difference = difference - (weight * difference).sum(-1, keepdim=True).detach()
    if counted is not None:
        difference = difference.masked_fill(~counted, 0)
    mean = (weight * difference).sum(-1)  # 0 but for rounding, and for its gradient
    small = difference.clamp(max=1)
    excess = weight * (small.expm1() - small)
    if _may_exceed(difference, 1):
        exponent = (shifted - total.log() + difference).clamp(max=LARGEST_EXPONENT)
        excess = torch.where(difference > 1, exponent.exp() - weight - weight * difference, excess)
    divergence = torch.log1p(mean + excess.sum(-1)) - mean
    if _may_exceed(difference, LARGEST_EXPONENT):
        exponent = shifted - total.log() + difference
        far = exponent.logsumexp(-1) - mean
        divergence = torch.where(exponent.amax(-1) > LARGEST_EXPONENT, far, divergence)
    return divergence


def _may_exceed(tensor: Tensor, bound: float) -> bool:
    """Asked on a CPU alone: elsewhere the answer would wait for the device, or be one a sample."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling() or is_mapped(tensor):
        return True
    return bool((tensor.detach().amax() > bound).item())
