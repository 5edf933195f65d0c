"""Token losses of hidden states, in chunks of rows: the operator and its autograd Function."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd_kernels.common import ceil_div
from fastkd_kernels.once import early_dtype, only_first_order, runs_at_once, scaled
from fastkd_kernels.scaling import scaled_gradients
from fastkd_kernels.tokens.launch import RowLosses, Teacher, launch_rows
from fastkd_kernels.tokens.operators import (
    SECOND_ORDER,
    Losses,
    as_outputs,
    flat,
    gradient_mean_is_early,
    late_factor,
    mean_of,
    shaped,
)
from fastkd_kernels.tokens.products import fresh_product, product, project
from fastkd_kernels.tokens.reduce import sum_rows
from fastkd_kernels.tokens.settings import TokenSettings, gradient_gain

# Logits of a chunk, student's and teacher's together. Fewer rows than fill it run in one chunk,
# as plain PyTorch would; a chunk that fills it hides the traffic of the weight's accumulator.
CHUNK_BYTES = 512 << 20
_ROWS_UNIT = 128


def chunk_rows(rows: int, bytes_per_row: int) -> int:
    """Rows of a chunk: all of them where they fit, else even chunks of whole tiles."""
    most = max(CHUNK_BYTES // bytes_per_row // _ROWS_UNIT, 1) * _ROWS_UNIT
    if rows <= most:
        return max(rows, 1)
    even = ceil_div(rows, ceil_div(rows, most))
    return ceil_div(even, _ROWS_UNIT) * _ROWS_UNIT


class Inputs(NamedTuple):
    """Rows of hidden states of both models, with their projections, and what they should say."""

    hidden: Tensor  # (rows, Ds)
    weight: Tensor  # (V, Ds)
    bias: Tensor | None
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    ids: Tensor | None  # (rows, K)
    log_probs: Tensor | None
    target: Tensor | None  # (rows,)
    counted: Tensor | None

    @property
    def chunk(self) -> int:
        """Rows whose logits are held at once."""
        weight, taught = self.weight, self.teacher_weight
        per_row = weight.shape[0] * weight.element_size()
        if taught is not None:
            per_row += taught.shape[0] * taught.element_size()
        return chunk_rows(self.hidden.shape[0], per_row)

    def rows(self, first: int, last: int) -> "Inputs":
        names = ("hidden", "teacher_hidden", "ids", "log_probs", "target", "counted")
        given = ((name, getattr(self, name)) for name in names)
        return self._replace(**{name: x[first:last] for name, x in given if x is not None})


class Ask(NamedTuple):
    """What is computed of `Inputs`."""

    settings: TokenSettings
    reduction: str
    predict: bool
    wanted: tuple[bool, ...]  # gradients of hidden, weight and bias
    exact: bool  # the gradients go to parameters of float32, whatever the products' type

    def gradient_dtype(self, given: Inputs, chunk: int) -> torch.dtype:
        """Of the stored gradients: sums over chunks of so many rows are float32."""
        if self.exact or chunk < given.hidden.shape[0]:
            return torch.float32
        return early_dtype(given.hidden.dtype)


def _linear_losses(given: Inputs, upstream: Tensor | None, ask: Ask) -> tuple[Any, ...]:
    """(loss, components (4, ...), prediction, d hidden, d weight, d bias, divisor's inverse)."""
    device = given.hidden.device
    off = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False) if off else nullcontext():
        rows = given.hidden.shape[0]
        losses = RowLosses.empty(rows, ask.predict, given.hidden)
        fraction, divisor = mean_of(rows, given.counted, ask.reduction)
        gain, scale = 1.0, None
        if upstream is None and gradient_mean_is_early(given.hidden.dtype):
            gain, scale = fraction, divisor
        elif upstream is None:
            gain = gradient_gain(ask.settings, given.hidden.dtype)
        chunk = given.chunk
        if 0 < rows <= chunk:
            slope = _launch(given, ask, losses, gain, scale if upstream is None else upstream)
            gradients = _gradients(slope, given, ask, ask.gradient_dtype(given, chunk))
        else:
            gradients = _in_chunks(given, chunk, upstream, ask, losses, gain, scale)
        if ask.reduction == "none":
            return losses.loss, losses.parts, losses.prediction, *gradients, divisor
        return *sum_rows(losses, fraction, divisor), losses.prediction, *gradients, divisor


def _launch(
    part: Inputs,
    ask: Ask,
    losses: RowLosses,
    gain: float,
    scale: Tensor | None,
    logits: Tensor | None = None,  # to fill, likewise the teacher's
    taught: Tensor | None = None,
) -> Tensor:
    """Fills `losses`; the student's logits, or their gradient where any is wanted."""
    z = project(part.hidden, part.weight, part.bias, logits)
    y = None
    if part.teacher_hidden is not None and part.teacher_weight is not None:
        y = project(part.teacher_hidden, part.teacher_weight, part.teacher_bias, taught)
    teacher = Teacher(y, part.ids, part.log_probs)
    gradient = z if any(ask.wanted) else None
    launch_rows(z, teacher, part.target, part.counted, ask.settings, losses, gradient, gain, scale)
    return z


def _in_chunks(
    given: Inputs,
    size: int,
    upstream: Tensor | None,
    ask: Ask,
    losses: RowLosses,
    gain: float,
    scale: Tensor | None,
) -> list[Tensor | None]:
    hidden, weight, taught = given.hidden, given.weight, given.teacher_weight
    rows = hidden.shape[0]
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    dtype = ask.gradient_dtype(given, size)
    gradients = [
        torch.zeros(shape, dtype=dtype, device=hidden.device) if want else None
        for shape, want in zip(shapes, ask.wanted, strict=True)
    ]
    logits = hidden.new_empty((size, weight.shape[0]))
    taught = None if taught is None else taught.new_empty((size, taught.shape[0]))
    for first in range(0, rows, size):
        last = min(first + size, rows)
        part = given.rows(first, last)
        slope = _launch(
            part,
            ask,
            losses.rows(first, last),
            gain,
            scale if upstream is None else upstream[first:last],
            logits[: last - first],
            None if taught is None else taught[: last - first],
        )
        _accumulate(gradients, slope, part, first)
    return gradients


def _states(part: Inputs) -> Tensor:
    """Hidden states, 0 where rows do not count: their slope is 0, which does not help against a
    state that is not finite."""
    if part.counted is None:
        return part.hidden
    return torch.where(part.counted.unsqueeze(-1), part.hidden, 0)


def _gradients(slope: Tensor, given: Inputs, ask: Ask, dtype: torch.dtype) -> list[Tensor | None]:
    """Of all rows at once; slope: (rows, V) dloss/dlogits."""
    to_hidden, to_weight, to_bias = ask.wanted
    return [
        fresh_product(slope, given.weight, dtype) if to_hidden else None,
        fresh_product(slope.t(), _states(given), dtype) if to_weight else None,
        slope.sum(0, dtype=torch.float32).to(dtype) if to_bias else None,
    ]


def _accumulate(gradients: list[Tensor | None], slope: Tensor, part: Inputs, first: int) -> None:
    to_hidden, to_weight, to_bias = gradients
    if to_hidden is not None:
        product(slope, part.weight, to_hidden[first : first + slope.shape[0]])
    if to_weight is not None:
        product(slope.t(), _states(part), to_weight, add=True)
    if to_bias is not None:
        to_bias += slope.sum(0, dtype=torch.float32)


@torch.library.custom_op("fastkd::linear_token_losses", mutates_args=())
def linear_token_losses_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    ids: Tensor | None,
    log_probs: Tensor | None,
    target: Tensor | None,
    counted: Tensor | None,
    upstream: Tensor | None,
    settings: list[float],
    reduction: str,
    predict: bool,
    wanted: list[bool],
    exact: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, (ce, kd, rank, entropy), prediction, d hidden, d weight, d bias, divisor's inverse).

    hidden: (rows, Ds); weight: (V, Ds); teacher likewise, or ids and log_probs (rows, K)
    upstream: (rows,) float32 factors of the rows' gradients, or None
    wanted: which of the three gradients; of float16, and where `upstream` is None, they are not
        yet divided by the mean's divisor and times `gradient_gain`; the others are empty
    exact: gradients are float32; else those of rows in one chunk have the inputs' type
    """
    given = Inputs(
        hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias, ids, log_probs, target,
        counted,
    )  # fmt: skip
    ask = Ask(TokenSettings.unpacked(settings), reduction, predict, tuple(wanted), exact)
    return as_outputs(_linear_losses(given, upstream, ask), hidden.device)


@linear_token_losses_op.register_fake
def _(
    hidden,
    weight,
    bias,
    teacher_hidden,
    teacher_weight,
    teacher_bias,
    ids,
    log_probs,
    target,
    counted,
    upstream,
    settings,
    reduction,
    predict,
    wanted,
    exact=False,
):
    rows = hidden.shape[0]
    given = Inputs(hidden, weight, bias, teacher_hidden, teacher_weight, *(None,) * 5)
    ask = Ask(TokenSettings.unpacked(settings), reduction, predict, tuple(wanted), exact)
    dtype = ask.gradient_dtype(given, given.chunk)

    def new(*size, dtype=torch.float32):
        return hidden.new_empty(size, dtype=dtype)

    size = (rows,) if reduction == "none" else ()
    prediction = hidden.new_empty(rows if predict else 0, dtype=torch.int64)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    gradients = [
        new(*shape, dtype=dtype) if want else new(0)
        for shape, want in zip(shapes, wanted, strict=True)
    ]
    inverse = counted is not None and reduction == "mean"
    return new(*size), new(4, *size), prediction, *gradients, new(int(inverse))


class LinearTokenLosses(torch.autograd.Function):
    """Sum and mean keep gradients and scale them; "none" recomputes the logits."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, constants, settings, reduction, predict, dtype):
        student = (hidden, weight, bias)
        ctx.wanted = tuple(bool(needed) for needed in ctx.needs_input_grad[:3])
        ctx.exact = any(x is not None and x.dtype != dtype for x in student)
        early = reduction != "none"
        ask = Ask(settings, reduction, predict, ctx.wanted if early else (False,) * 3, ctx.exact)
        loss, parts, prediction, *gradients, inverse = _found(
            _cast(student, dtype), constants, None, ask
        )
        ctx.save_for_backward(*student, *gradients, inverse)
        ctx.constants, ctx.options = constants, (settings, reduction, dtype)
        predicted = () if prediction is None else (prediction,)
        ctx.mark_non_differentiable(parts, *predicted)
        ctx.set_materialize_grads(False)
        return loss, parts, prediction

    @staticmethod
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 8
        *saved, inverse = ctx.saved_tensors
        student, gradients = saved[:3], saved[3:]
        settings, reduction, dtype = ctx.options
        if reduction == "none":
            ask = Ask(settings, reduction, False, ctx.wanted, ctx.exact)
            with torch.no_grad():
                factors = upstream.float().contiguous()
                gradients = _found(_cast(student, dtype), ctx.constants, factors, ask)[3:6]
                found = [
                    gradient.to(x.dtype) if wanted else None
                    for wanted, gradient, x in zip(ctx.wanted, gradients, student, strict=True)
                ]
        else:
            rows = student[0].shape[0]
            mean = reduction == "mean"
            factor = late_factor(upstream.detach(), settings, dtype, mean, inverse, rows)
            gradients = [
                gradient if wanted else None
                for wanted, gradient in zip(ctx.wanted, gradients, strict=True)
            ]
            found = _scaled(factor, gradients, student)
        return *only_first_order(found, student, SECOND_ORDER), *(None,) * 5


def _scaled(factor: Tensor, gradients, student) -> list[Tensor | None]:
    if runs_at_once(factor, *gradients):
        return scaled_gradients(factor, gradients, student)
    factor = factor.reshape(()).float()
    return [
        None if gradient is None else scaled(gradient, factor, x.dtype)
        for gradient, x in zip(gradients, student, strict=True)
    ]


def _cast(student: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [x if x is None or x.dtype == dtype else x.to(dtype) for x in student]


def _found(student, constants, upstream, ask: Ask) -> tuple[Any, ...]:
    """What `_linear_losses` returns, by the operator or not."""
    given = Inputs(*student, *constants)
    if runs_at_once(*given, upstream):
        return _linear_losses(given, upstream, ask)
    settings, reduction, predict, wanted, exact = ask
    found: tuple[Any, ...] = torch.ops.fastkd.linear_token_losses(
        *given, upstream, settings.packed(), reduction, predict, list(wanted), exact
    )
    return found


def linear_token_losses(
    student: tuple[Tensor, Tensor, Tensor | None],
    dense_teacher: tuple[Tensor | None, Tensor | None, Tensor | None],
    listed_teacher: Teacher,
    target: Tensor | None,
    counted: Tensor | None,
    settings: TokenSettings,
    reduction: str,
    predict: bool,
) -> Losses:
    """`dense_token_losses` of hidden·weightᵀ + bias for student and teacher.

    student: (..., Ds), (V, Ds), (V,) or None; dense_teacher likewise, or three times None.
    Under autocast the products take its type.
    """
    hidden, weight, bias = student
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    device = hidden.device.type
    dtype, teacher_dtype = hidden.dtype, None
    if dense_teacher[0] is not None:
        teacher_dtype = dense_teacher[0].dtype
    if torch.is_autocast_enabled(device):
        dtype = teacher_dtype = torch.get_autocast_dtype(device)
    if not settings.teaches:
        dense_teacher, listed_teacher = (None, None, None), Teacher()
    teacher_hidden, *teacher_projection = dense_teacher
    if settings.vocabulary is not None:  # no more of its ids are compared
        teacher_projection = [
            each if each is None else each[: settings.vocabulary] for each in teacher_projection
        ]
    teacher = (flat(teacher_hidden, 1), *teacher_projection)
    constants = (
        *(teacher if teacher_dtype is None else _cast(teacher, teacher_dtype)),
        flat(listed_teacher.ids, 1),
        flat(listed_teacher.log_probs, 1),
        flat(target),
        flat(counted),
    )
    loss, parts, prediction = LinearTokenLosses.apply(
        flat(hidden, 1), weight, bias, constants, settings, reduction, predict, dtype
    )
    return shaped(loss, parts, prediction, hidden.shape[:-1], reduction, predict)
