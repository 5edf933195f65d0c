"""Attention alignment: how far a student's attention maps are from a teacher's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from fastkd import watching
from fastkd.errors import InputError
from fastkd.functional import checks, remembered
from fastkd.functional.calls import (
    AlignmentCall,
    AlignmentKeywords,
    AlignmentOptions,
    Maps,
    QueryKey,
    Side,
)
from fastkd.functional.dispatch import attention_backend, choose
from fastkd.functional.signatures import spelled_out

PART = "alignment loss"  # what observers hear

Layers = Tensor | Sequence[Tensor]


@spelled_out(AlignmentOptions)
def attention_alignment_loss(
    student_query: Layers,
    student_key: Layers,
    teacher_query: Layers,
    teacher_key: Layers,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    student_scale: float | None = None,
    teacher_scale: float | None = None,
    backend: str = "auto",
    position_bias: None = None,
    soft_cap: None = None,
    window: None = None,
    left_padding: bool = False,
    **options: Unpack[AlignmentKeywords],
) -> Tensor:
    """Divergence of the teacher's attention maps from a mix of the student's.

    With P = softmax(student_scale · student_query @ student_keyᵀ), Q likewise for the teacher and
    M = einsum("jh,bhqk->bjqk", weight, P) + bias, for each sentence b and teacher map j:

        "map"      KL(softmax over all cells of Q/τ ‖ softmax over all cells of M/τ)
        "row"      Σ_queries KL(softmax over keys of Q/τ ‖ softmax over keys of M/τ)
        "mixture"  Σ_queries KL(Q ‖ R), R = einsum("jh,bhqk->bjqk", softmax(weight, 1), P),
                   where log R means log max(R, 2⁻¹²⁶)

    Shapes: student_query (B, Ns, Tq, Ds), student_key (B, Ns_kv, Tk, Ds), teacher_query
    (B, Nt, Tq, Dt), teacher_key (B, Nt_kv, Tk, Dt), with Ns = layers × heads, layer-major; each
    may also be a sequence of per-layer tensors, read as their concatenation along the heads.
    Ns_kv divides Ns and Nt_kv divides Nt (grouped-query attention). weight (Nt, Ns); None compares
    head n with head n. bias (Nt,) shifts every cell of a softmax alike: it has no effect, and a
    gradient of zeros. Lengths are (B,) integers, padding is at the end.

    padding="exclude" takes real queries and the keys they may attend to; a query without any
    contributes nothing. padding="include" is the loss as published: all Tq·Tk cells count, pad
    queries with the distribution they have over the real keys, pad keys and future cells as zeros.

    The teacher is a constant. reduction: "sum"; "mean", the sum divided by B; "rows", divided by
    counted query rows × Nt, or with "map" by B·Nt, which depends on no batch size; "none" (B, Nt).
    The loss is float32, or float64 where an input is. Under autocast queries and keys are rounded
    to its dtype; the rest is float32.

    Raises `InputError` (a ValueError) for arguments that do not fit, and `BackendUnavailable` where
    a backend asked for by name cannot serve. Attention with a position bias, a soft cap, a window
    or left padding is refused: `alignment_loss_from_maps` takes the maps themselves.

    Source: Jin et al., "Align-to-Distill", LREC-COLING 2024, §3 ("map", padding="include").
    """
    _refuse_features(
        position_bias=position_bias, soft_cap=soft_cap, window=window, left_padding=left_padding
    )
    given = _options_of(**options)
    layout = remembered.layout(
        "queries and keys", given, student_query, student_key, teacher_query, teacher_key, weight,
        bias, query_lengths, key_lengths,
    )  # fmt: skip
    known = remembered.passed(layout)
    call = _call(
        _query_key("student", student_query, student_key, student_scale, known),
        _query_key("teacher", teacher_query, teacher_key, teacher_scale, known),
        weight,
        bias,
        query_lengths,
        key_lengths,
        None,
        given,
        known,
    )
    remembered.remember(layout)
    served_by = choose("attention", attention_backend, backend, call.student.query[0], call)
    return _reduced(call, served_by.query_key_loss)


@spelled_out(AlignmentOptions)
def alignment_loss_from_maps(
    student_maps: Layers,
    teacher_maps: Layers,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    key_mask: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
    **options: Unpack[AlignmentKeywords],
) -> Tensor:
    """`attention_alignment_loss` for callers who hold the maps.

    student_maps (B, Ns, Tq, Tk) and teacher_maps (B, Nt, Tq, Tk), or sequences of per-layer maps,
    stand for P and Q; cells outside the keys' lengths and causality are set to zero first. This is
    the way for attention with a position bias, a soft cap, a window or left padding: cells that a
    query may not attend to are zeros in both.

    key_mask (B, Tk) or mask (B, Tq, Tk), bool, say which cells a query may attend to in place of
    key_lengths, or of both lengths: true where a cell counts, wherever the padding is.
    """
    given = _options_of(**options)
    layout = remembered.layout(
        "maps", given, student_maps, teacher_maps, weight, bias, query_lengths, key_lengths,
        key_mask, mask,
    )  # fmt: skip
    known = remembered.passed(layout)
    student = Maps(_layers("student_maps", student_maps, known))
    teacher = Maps(_constants("teacher_maps", _layers("teacher_maps", teacher_maps, known), known))
    if not known:
        _check_masks(student, key_mask, mask, query_lengths, key_lengths)
    cells = mask if key_mask is None else key_mask[:, None]
    call = _call(student, teacher, weight, bias, query_lengths, key_lengths, cells, given, known)
    remembered.remember(layout)
    served_by = choose("attention", attention_backend, backend, student.layers[0], call)
    return _reduced(call, served_by.map_loss)


def _refuse_features(**features: object) -> None:
    for name, value in features.items():
        if value is not None and value is not False:
            raise InputError(
                f"{name}: queries and keys alone do not give the maps of such attention; pass the "
                "maps to alignment_loss_from_maps"
            )


def _scale(name: str, value: float | None, query: Tensor) -> float:
    if value is None:
        return 1 / math.sqrt(max(query.shape[3], 1))
    value = float(value)
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, not {value}")
    return value


_options_of = remembered.kept(AlignmentOptions)


def _layers(name: str, value: Layers, known: bool) -> tuple[Tensor, ...]:
    if not known:
        return checks.layers(name, value)
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _query_key(side: str, query: Layers, key: Layers, scale: float | None, known: bool) -> QueryKey:
    query = _layers(f"{side}_query", query, known)
    key = _layers(f"{side}_key", key, known)
    if not known:
        checks.query_key(side, query, key)
    scale = _scale(f"{side}_scale", scale, query[0])
    if side == "teacher":
        query, key = (
            _constants("teacher_query", query, known),
            _constants("teacher_key", key, known),
        )
    return QueryKey(query, key, scale)


def _constants(name: str, layers: tuple[Tensor, ...], known: bool) -> tuple[Tensor, ...]:
    """Of `torch.inference_mode`, which autograd does not keep, copies."""
    if not known:
        for layer in layers:
            checks.constant(**{name: layer})
    if torch.compiler.is_compiling():
        return layers
    return tuple(layer.clone() if layer.is_inference() else layer for layer in layers)


def _call(
    student: Side,
    teacher: Side,
    weight: Tensor | None,
    bias: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
    mask: Tensor | None,
    options: AlignmentOptions,
    known: bool,
) -> AlignmentCall[Side]:
    batch = student.tensors[0].shape[0]
    query_lengths = checks.lengths("query_lengths", query_lengths, batch, student.queries)
    key_lengths = checks.lengths("key_lengths", key_lengths, batch, student.keys)
    call = AlignmentCall(student, teacher, weight, bias, query_lengths, key_lengths, mask, options)
    if not known:
        checks.alignment(call)
    return call


def _check_masks(
    student: Maps,
    key_mask: Tensor | None,
    mask: Tensor | None,
    query_lengths: Tensor | None,
    key_lengths: Tensor | None,
) -> None:
    first = student.layers[0]
    batch, queries, keys = first.shape[0], student.queries, student.keys
    for name, value, beside in (
        ("key_mask", key_mask, (mask, key_lengths)),
        ("mask", mask, (query_lengths, key_lengths)),
    ):
        if value is not None and any(other is not None for other in beside):
            raise InputError(f"{name} is given in place of lengths and of other masks, not beside")
    if key_mask is not None:
        checks.mask("key_mask", key_mask, (batch, keys), first.device)
    if mask is not None:
        checks.mask("mask", mask, (batch, queries, keys), first.device)


def _reduced(call: AlignmentCall[Side], backend: Callable[[AlignmentCall[Side]], Tensor]) -> Tensor:
    if not _cells(call):
        return _nothing_to_compare(call)
    if call.options.reduction != "rows":
        return watching.named(PART, backend, call)
    total = replace(call, options=replace(call.options, reduction="sum"))
    loss = watching.named(PART, backend, total)
    return loss / (_counted_groups(call) * call.teacher.maps)


def _counted_groups(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> Tensor | int:
    """Sentences with normalization "map", else query rows that count; at least 1."""
    first, queries = call.student.tensors[0], call.student.queries
    if call.options.normalization == "map":
        return first.shape[0]
    every = call.query_lengths is None and call.key_lengths is None and call.mask is None
    if call.options.padding == "include" or every:
        return first.shape[0] * queries
    rows = torch.ones(first.shape[0], queries, dtype=torch.bool, device=first.device)
    if call.query_lengths is not None:
        rows &= (
            torch.arange(queries, device=first.device)
            < call.query_lengths.to(first.device)[:, None]
        )
    if call.key_lengths is not None:
        rows &= call.key_lengths.to(first.device)[:, None] > 0
    if call.mask is not None:
        cells = call.mask.expand(-1, queries, -1)
        rows &= (cells.tril() if call.options.causal else cells).any(-1)
    return rows.sum().clamp(min=1)


def _cells(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> int:
    student = call.student
    return student.tensors[0].shape[0] * student.maps * student.queries * student.keys


def _nothing_to_compare(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> Tensor:
    """The loss of inputs without a single cell: zero, with gradients of zeros."""
    learned = [
        *call.student.tensors,
        *(each for each in (call.weight, call.bias) if each is not None),
    ]
    shape = (learned[0].shape[0], call.teacher.maps) if call.options.reduction == "none" else ()
    double = any(tensor.dtype == torch.float64 for tensor in (*learned, *call.tensors))
    zero = learned[0].new_zeros(shape, dtype=torch.float64 if double else torch.float32)
    for tensor in learned:
        if tensor.requires_grad:
            zero = zero + tensor[..., :0].sum().to(zero.dtype)  # of nothing, whatever is there
    return zero
