"""The walk as one operator, for `torch.compile` and `torch.export`.

How a batch is cut depends on its lengths, which a graph cannot know; so a graph holds the call.
"""

from collections.abc import Callable
from typing import Any

import torch
from fastkd_kernels.once import early_dtype
from torch import Tensor

from fastkd.backends.attention.precision import autocast_dtype, inside_dtype
from fastkd.backends.attention.torch.function import Call, Pose, reduced
from fastkd.backends.operators import names_of, packed, schema_of
from fastkd.functional.calls import AlignmentCall, AlignmentOptions, Maps, QueryKey

Poser = Callable[[AlignmentCall[Any], torch.dtype | None], Pose]

NAMES = names_of(AlignmentOptions)
SCHEMA = (
    "(Tensor student, Tensor? student_key, Tensor? weight, Tensor teacher, Tensor? teacher_key, "
    "Tensor? query_lengths, Tensor? key_lengths, Tensor? mask, Tensor? upstream, bool[] needed, "
    f"float student_scale, float teacher_scale, ScalarType? autocast, {schema_of(AlignmentOptions)}"
    ") -> (Tensor, Tensor, Tensor, Tensor)"
)


def define(query_key: Poser, maps: Poser) -> None:
    """Registers the operator, whose problems are posed by these."""

    def walk(*arguments: Any) -> tuple[Tensor, ...]:
        return _walk(query_key, maps, *arguments)

    torch.library.define("fastkd::alignment_walk", SCHEMA)
    for device in ("cpu", "cuda"):
        torch.library.impl("fastkd::alignment_walk", device, walk)
    torch.library.register_fake("fastkd::alignment_walk", _fake)
    torch.library.register_autograd("fastkd::alignment_walk", _backward, setup_context=_setup)


def traced_loss(call: AlignmentCall[QueryKey] | AlignmentCall[Maps]) -> Tensor:
    sides: list[tuple[Tensor, Tensor | None, float]] = []
    for side in (call.student, call.teacher):
        if isinstance(side, QueryKey):
            sides.append((torch.cat(side.query, 1), torch.cat(side.key, 1), side.scale))
        else:
            sides.append((torch.cat(side.layers, 1), None, 1.0))
    (student, key, student_scale), (teacher, teacher_key, teacher_scale) = sides
    grad = torch.is_grad_enabled()
    needed = [
        grad and each is not None and each.requires_grad for each in (student, key, call.weight)
    ]
    loss: Tensor = torch.ops.fastkd.alignment_walk(
        student, key, call.weight, teacher, teacher_key, call.query_lengths, call.key_lengths,
        call.mask, None, needed, student_scale, teacher_scale,
        autocast_dtype(student.device.type), *packed(call.options, NAMES),
    )[0]  # fmt: skip
    if call.bias is None:
        return loss
    return loss + (0 * call.bias if loss.dim() else (0 * call.bias).sum())


def _walk(query_key: Poser, maps: Poser, *arguments: Any) -> tuple[Tensor, ...]:
    student, key, weight, teacher, teacher_key, query_lengths, key_lengths, mask = arguments[:8]
    upstream, needed, student_scale, teacher_scale, autocast, *options = arguments[8:]
    given = AlignmentOptions(*options)
    rest = weight, None, query_lengths, key_lengths, mask, given
    call: AlignmentCall[QueryKey] | AlignmentCall[Maps]
    if key is None:
        call = AlignmentCall(Maps((student,)), Maps((teacher,)), *rest)
        pose = maps(call, autocast)
    else:
        ours = QueryKey((student,), (key,), student_scale)
        call = AlignmentCall(ours, QueryKey((teacher,), (teacher_key,), teacher_scale), *rest)
        pose = query_key(call, autocast)
    learned = call.student.tensors
    wanted = (*needed[: len(learned)], *([needed[2]] if weight is not None else []))
    posed = Call(pose, given.reduction, len(learned), weight is not None, False, wanted)
    parameters = () if weight is None else (weight,)
    tensors = (*learned, *parameters, *call.teacher.tensors)
    later = given.reduction == "none" and upstream is None
    walk = posed.walk(tensors, upstream, learning=not later)
    found = [None] * len(wanted) if later else posed.gradients(walk, tensors)
    if given.reduction == "mean":
        found = [None if each is None else each.div_(len(student)) for each in found]
    if key is None:
        found.insert(1, None)
    if weight is None:
        found.append(None)
    loss = reduced(walk, posed).clone()
    return loss, *(_nothing(student) if each is None else each for each in found)


def _nothing(like: Tensor) -> Tensor:
    """Operators return tensors: an empty one stands for what nobody asked for."""
    return like.new_empty(0, dtype=torch.float32)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    student, key, weight, teacher, teacher_key = arguments[:5]
    upstream, needed, options = arguments[8], arguments[9], AlignmentOptions(*arguments[13:])
    each_map = options.reduction == "none"
    shape = (student.shape[0], teacher.shape[1]) if each_map else ()
    inside = inside_dtype((student, key, weight, teacher, teacher_key))
    gradients = [
        each.new_empty(each.shape, dtype=early_dtype(each.dtype))
        if need and each is not None and (upstream is not None or not each_map)
        else _nothing(student)
        for each, need in zip((student, key, weight), needed, strict=True)
    ]
    return (student.new_empty(shape, dtype=inside), *gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.needed, ctx.settings = inputs[9], inputs[10:]
    ctx.later = AlignmentOptions(*inputs[13:]).reduction == "none"
    ctx.save_for_backward(*inputs[:8], *([] if ctx.later else output[1:]))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (10 + len(NAMES))
    if upstream is None:
        return (None, None, None, *rest)
    given = ctx.saved_tensors[:8]
    if ctx.later:
        found = torch.ops.fastkd.alignment_walk(*given, upstream, ctx.needed, *ctx.settings)[1:]
    else:
        found = [gradient * upstream for gradient in ctx.saved_tensors[8:]]
    gradients = [
        gradient.to(each.dtype) if need and each is not None else None
        for gradient, each, need in zip(found, given[:3], ctx.needed, strict=True)
    ]
    return (*gradients, *rest)
