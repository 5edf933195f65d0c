"""The walk as one operator, for `torch.compile` and `torch.export`.

Its chunks depend on how many positions count, which a graph cannot know; so a graph holds the
call, and any number of positions runs the same graph.
"""

import math
from typing import Any

import torch
from fastkd_kernels.once import early_dtype
from torch import Tensor

from fastkd.backends.operators import names_of, packed, schema_of
from fastkd.backends.tokens.torch.dense import DenseWalk
from fastkd.backends.tokens.torch.linear import LinearWalk
from fastkd.backends.tokens.torch.numerics import product_dtype
from fastkd.functional.calls import Projected, TokenCall, TokenLosses, TokenOptions
from fastkd.functional.sparse import SparseTeacher

GIVEN = (
    "student", "weight", "bias", "teacher", "teacher_weight", "teacher_bias", "ids", "log_probs",
    "target", "counted", "upstream",
)  # fmt: skip
NAMES = names_of(TokenOptions)
SCHEMA = (
    f"(Tensor student, {', '.join(f'Tensor? {name}' for name in GIVEN[1:])}, bool[] needed, "
    f"ScalarType product, str rest, {schema_of(TokenOptions)}) -> "
    f"({', '.join(['Tensor'] * 9)})"
)
torch.library.define("fastkd::token_walk", SCHEMA)


def traced_losses(call: TokenCall[Tensor] | TokenCall[Projected]) -> TokenLosses:
    student, teacher = call.student, call.teacher
    learned = tuple(student) if isinstance(student, Projected) else (student, None, None)
    constants: tuple[Tensor | None, ...] = (None,) * 5
    rest = "drop"
    if isinstance(teacher, SparseTeacher):
        constants = (None, None, None, teacher.ids, teacher.log_probs)
        rest = teacher.rest
    elif isinstance(teacher, Projected):
        constants = (*teacher, None, None)
    elif teacher is not None:
        constants = (teacher, None, None, None, None)
    grad = torch.is_grad_enabled()
    needed = [grad and each is not None and each.requires_grad for each in learned]
    product = product_dtype(student.hidden if isinstance(student, Projected) else student)
    loss, ce, kd, rank, prediction, entropy, *_ = torch.ops.fastkd.token_walk(
        *learned, *constants, call.target, call.counted, None, needed, product, rest,
        *packed(call.options, NAMES),
    )  # fmt: skip
    prediction = prediction if call.options.return_prediction else None
    return TokenLosses(loss, ce, kd, rank, prediction, entropy)


def _walk(*arguments: Any) -> tuple[Tensor, ...]:
    student, weight, bias, teacher, teacher_weight, teacher_bias, ids, log_probs = arguments[:8]
    target, counted, upstream, needed, product, rest, *options = arguments[8:]
    given = TokenOptions(*options)
    listed = None if ids is None else SparseTeacher(ids, log_probs, rest)
    walk: DenseWalk | LinearWalk
    if weight is None:
        known = teacher if listed is None else listed
        walk = DenseWalk(TokenCall(student, known, target, counted, given))
    else:
        projected = None if teacher is None else Projected(teacher, teacher_weight, teacher_bias)
        own = Projected(student, weight, bias)
        known = projected if listed is None else listed
        walk = LinearWalk(TokenCall(own, known, target, counted, given), product)
    learned = (student,) if weight is None else (student, weight, bias)
    later = given.reduction == "none" and upstream is None
    wanted = [each and not later for each in needed[: len(learned)]]
    flat = None if upstream is None else upstream.reshape(-1)
    totals, gradients = walk.run(learned, flat, wanted)
    losses = totals.reduced(walk.shape)
    if not isinstance(walk.later, int) or walk.later != 1:
        for gradient in gradients:
            if gradient is not None:
                gradient.div_(walk.later)
    found = [_nothing(student) if each is None else each for each in gradients]
    found += [_nothing(student) for _ in range(3 - len(found))]  # outputs share no memory
    prediction = _nothing(student).long() if losses.prediction is None else losses.prediction
    return (*losses[:4], prediction, losses.entropy, *found)


def _nothing(like: Tensor) -> Tensor:
    """Operators return tensors: an empty one stands for what nobody asked for."""
    return like.new_empty(0, dtype=torch.float32)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    student, weight, bias = arguments[:3]
    upstream, needed, options = arguments[10], arguments[11], TokenOptions(*arguments[14:])
    positions = student.shape[:-1]
    inside = torch.float64 if student.dtype == torch.float64 else torch.float32
    shape = positions if options.reduction == "none" else ()
    losses = [student.new_empty(shape, dtype=inside) for _ in range(5)]
    size = positions if options.return_prediction else (0,)
    prediction = student.new_empty(size, dtype=torch.int64)
    later = options.reduction == "none" and upstream is None
    rows = math.prod(positions)  # which may be symbols
    dtype = early_dtype(student.dtype) if weight is None else inside
    gradients = []
    for each, need in zip((student, weight, bias), needed, strict=True):
        if each is None or not need or later:
            gradients.append(_nothing(student))
        else:
            full = (rows, each.shape[-1]) if each is student else each.shape
            gradients.append(student.new_empty(full, dtype=dtype))
    return (*losses[:4], prediction, losses[4], *gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.needed, ctx.settings = inputs[11], inputs[12:]
    ctx.later = TokenOptions(*inputs[14:]).reduction == "none"
    ctx.save_for_backward(*inputs[:10], *([] if ctx.later else output[6:]))
    ctx.mark_non_differentiable(*output[1:6])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (8 + 3 + len(NAMES))
    if upstream is None:
        return (None, None, None, *rest)
    given = ctx.saved_tensors[:10]
    if ctx.later:
        found = torch.ops.fastkd.token_walk(*given, upstream, ctx.needed, *ctx.settings)[6:]
    else:
        found = [gradient * upstream for gradient in ctx.saved_tensors[10:]]
    gradients = [
        gradient.to(each.dtype).reshape(each.shape) if need and each is not None else None
        for gradient, each, need in zip(found, given[:3], ctx.needed, strict=True)
    ]
    return (*gradients, *rest)


for device in ("cpu", "cuda"):
    torch.library.impl("fastkd::token_walk", device, _walk)
torch.library.register_fake("fastkd::token_walk", _fake)
torch.library.register_autograd("fastkd::token_walk", _backward, setup_context=_setup)
