"""Attention alignment: how far a student's attention maps are from a teacher's."""

from collections.abc import Sequence

from torch import Tensor

from fastkd import watching
from fastkd.functional import attention_inputs as inputs
from fastkd.functional.dispatch import backend_module
from fastkd.functional.options import AlignmentOptions

PART = "alignment loss"  # what observers hear

Layers = Tensor | Sequence[Tensor]


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
    causal: bool = False,
    student_scale: float | None = None,
    teacher_scale: float | None = None,
    normalization: str = "map",
    temperature: float = 1.0,
    padding: str = "exclude",
    reduction: str = "sum",
    backend: str = "auto",
    position_bias: None = None,
    soft_cap: None = None,
    window: None = None,
    left_padding: bool = False,
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

    The teacher is a constant. reduction: "sum", "mean" (the sum divided by B) or "none" (B, Nt).
    The loss is float32, or float64 where an input is. Under autocast queries and keys are rounded
    to its dtype; the rest is float32.

    Raises `InputError` (a ValueError) for arguments that do not fit, and `BackendUnavailable` where
    a backend asked for by name cannot serve. Attention with a position bias, a soft cap, a window
    or left padding is refused: `alignment_loss_from_maps` takes the maps themselves.

    Source: Jin et al., "Align-to-Distill", LREC-COLING 2024, §3 ("map", padding="include").
    """
    inputs.refuse_other_attention(
        position_bias=position_bias, soft_cap=soft_cap, window=window, left_padding=left_padding
    )
    student_query = inputs.layers("student_query", student_query)
    student_key = inputs.layers("student_key", student_key)
    teacher_query = inputs.layers("teacher_query", teacher_query)
    teacher_key = inputs.layers("teacher_key", teacher_key)
    student = inputs.check_attention("student", student_query, student_key)
    teacher = inputs.check_attention("teacher", teacher_query, teacher_key)
    inputs.check_pair(student, teacher, weight, bias)
    inputs.check_constant(teacher_query=teacher_query, teacher_key=teacher_key)
    options = AlignmentOptions(
        causal=causal,
        student_scale=inputs.scale("student_scale", student_scale, student.head_size),
        teacher_scale=inputs.scale("teacher_scale", teacher_scale, teacher.head_size),
        normalization=normalization,
        temperature=temperature,
        padding=padding,
        reduction=reduction,
    )
    inputs.check_options(options, student, bias)
    query_lengths = inputs.lengths("query_lengths", query_lengths, student.batch, student.queries)
    key_lengths = inputs.lengths("key_lengths", key_lengths, student.batch, student.keys)
    constants = inputs.constants(teacher_query), inputs.constants(teacher_key)
    tensors = (student_query, student_key, *constants)
    module = backend_module("attention", backend, student_query[0], tensors, weight, options)
    if not student.cells:
        learned = (*student_query, *student_key, weight, bias)
        return inputs.nothing_to_compare(learned, teacher_query, teacher.maps, options)
    rest = (weight, bias, query_lengths, key_lengths, options)
    return watching.named(PART, module.query_key_loss, *tensors, *rest)


def alignment_loss_from_maps(
    student_maps: Layers,
    teacher_maps: Layers,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    query_lengths: Tensor | None = None,
    key_lengths: Tensor | None = None,
    causal: bool = False,
    normalization: str = "map",
    temperature: float = 1.0,
    padding: str = "exclude",
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """`attention_alignment_loss` for callers who hold the maps.

    student_maps (B, Ns, Tq, Tk) and teacher_maps (B, Nt, Tq, Tk), or sequences of per-layer maps,
    stand for P and Q; cells outside the keys' lengths and causality are set to zero first. This is
    the way for attention with a position bias, a soft cap, a window or left padding: cells that a
    query may not attend to are zeros in both.
    """
    student_maps = inputs.layers("student_maps", student_maps)
    teacher_maps = inputs.layers("teacher_maps", teacher_maps)
    student = inputs.check_maps("student_maps", student_maps)
    teacher = inputs.check_maps("teacher_maps", teacher_maps)
    inputs.check_pair(student, teacher, weight, bias)
    inputs.check_constant(teacher_maps=teacher_maps)
    options = AlignmentOptions(
        causal=causal,
        normalization=normalization,
        temperature=temperature,
        padding=padding,
        reduction=reduction,
    )
    inputs.check_options(options, student, bias)
    query_lengths = inputs.lengths("query_lengths", query_lengths, student.batch, student.queries)
    key_lengths = inputs.lengths("key_lengths", key_lengths, student.batch, student.keys)
    tensors = (student_maps, inputs.constants(teacher_maps))
    module = backend_module("attention", backend, student_maps[0], tensors, weight, options)
    if not student.cells:
        learned = (*student_maps, weight, bias)
        return inputs.nothing_to_compare(learned, teacher_maps, teacher.maps, options)
    rest = (weight, bias, query_lengths, key_lengths, options)
    return watching.named(PART, module.map_loss, *tensors, *rest)
