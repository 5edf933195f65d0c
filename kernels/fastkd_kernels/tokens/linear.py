"""Token losses of hidden states, in chunks of rows: the operator and its autograd Function."""

import torch
from torch import Tensor

from fastkd_kernels.common import ceil_div
from fastkd_kernels.once import first_order, scaled
from fastkd_kernels.tokens.launch import RowLosses, Teacher, launch_rows
from fastkd_kernels.tokens.operators import flat
from fastkd_kernels.tokens.reduce import inverse_count, sum_rows
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


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> None:
    """out = left @ right (+ out), summed in `out`'s type, float32 or the inputs' own."""
    if out.dtype != left.dtype and out.is_cuda and torch.version.hip is None:
        if add:
            torch.ops.aten.addmm.dtype_out(out, left, right, out.dtype, out=out)
        else:
            torch.ops.aten.mm.dtype_out(left, right, out.dtype, out=out)
        return
    left, right = left.to(out.dtype), right.to(out.dtype)
    if add:
        torch.addmm(out, left, right, out=out)
    else:
        torch.mm(left, right, out=out)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)


@torch.library.custom_op("fastkd_kernels::linear_token_losses", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, ce, kd, rank, prediction, d hidden, d weight, d bias, divisor's inverse).

    hidden: (rows, Ds); weight: (V, Ds); teacher likewise, or ids and log_probs (rows, K)
    upstream: (rows,) float32 factors of the rows' gradients, or None
    wanted: which of the three gradients; they are float32 sums over rows, not yet divided by the
        mean's divisor and times `gradient_gain` where `upstream` is None; the others are empty
    """
    with torch.autocast(hidden.device.type, enabled=False):
        chosen = TokenSettings.unpacked(settings)
        rows, vocabulary = hidden.shape[0], weight.shape[0]
        losses = RowLosses.empty(rows, predict, hidden.device)
        gradients = _accumulators(hidden, weight, wanted)
        per_row = vocabulary * weight.element_size()
        if teacher_weight is not None:
            per_row += vocabulary * teacher_weight.element_size()
        size = chunk_rows(rows, per_row)
        logits = hidden.new_empty((size, vocabulary))
        taught = None
        if teacher_weight is not None:
            taught = teacher_weight.new_empty((size, vocabulary))
        gain = gradient_gain(chosen, hidden.dtype) if upstream is None else 1.0
        for first in range(0, rows, size):
            last = min(first + size, rows)
            part = slice(first, last)
            z = _logits(hidden[part], weight, bias, logits[: last - first])
            y = None
            if taught is not None and teacher_hidden is not None and teacher_weight is not None:
                y = taught[: last - first]
                _logits(teacher_hidden[part], teacher_weight, teacher_bias, y)
            launch_rows(
                z,
                Teacher(y, ids, log_probs).rows(first, last),
                None if target is None else target[part],
                None if counted is None else counted[part],
                chosen,
                losses.rows(first, last),
                z if any(wanted) else None,
                gain,
                None if upstream is None else upstream[part],
            )
            _accumulate(gradients, z, hidden, weight, counted, part)
        divisor = None
        if reduction == "mean" and counted is not None:
            divisor = inverse_count(counted)
        if reduction == "none":
            loss, ce, kd, rank = (column.clone() for column in losses.columns)
        else:
            fraction = 1 / max(rows, 1) if reduction == "mean" and divisor is None else 1.0
            loss, ce, kd, rank = sum_rows(losses.columns, fraction, divisor)
        nothing = torch.empty(0, device=hidden.device)
        to_hidden, to_weight, to_bias = (
            nothing.clone() if gradient is None else gradient for gradient in gradients
        )
        inverse = nothing if divisor is None else divisor
        return loss, ce, kd, rank, losses.prediction, to_hidden, to_weight, to_bias, inverse


def _accumulators(hidden: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor | None]:
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    return [
        torch.zeros(shape, dtype=torch.float32, device=hidden.device) if want else None
        for shape, want in zip(shapes, wanted, strict=True)
    ]


def _accumulate(
    gradients: list[Tensor | None],
    slope: Tensor,  # (chunk, V) dloss/dlogits
    hidden: Tensor,
    weight: Tensor,
    counted: Tensor | None,
    part: slice,
) -> None:
    to_hidden, to_weight, to_bias = gradients
    if to_hidden is not None:
        _product(slope, weight, to_hidden[part])
    if to_weight is not None:
        states = hidden[part]
        if counted is not None:
            # Their slope is 0, which does not help against a state that is not finite.
            states = states.masked_fill(~counted[part].unsqueeze(-1), 0)
        _product(slope.t(), states, to_weight, add=True)
    if to_bias is not None:
        to_bias += slope.sum(0, dtype=torch.float32)


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
):
    rows = hidden.shape[0]

    def new(*size):
        return hidden.new_empty(size, dtype=torch.float32)

    losses = [new(rows) if reduction == "none" else new() for _ in range(4)]
    prediction = hidden.new_empty(rows if predict else 0, dtype=torch.int64)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    gradients = [
        new(*shape) if want else new(0) for shape, want in zip(shapes, wanted, strict=True)
    ]
    inverse = counted is not None and reduction == "mean"
    return *losses, prediction, *gradients, new(int(inverse))


class LinearTokenLosses(torch.autograd.Function):
    """Sum and mean keep float32 gradients and scale them; "none" recomputes the logits."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, constants, settings, reduction, predict, dtype):
        ctx.wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        early = reduction != "none"
        student = [None if x is None else x.to(dtype) for x in (hidden, weight, bias)]
        *losses, prediction, to_hidden, to_weight, to_bias, inverse = (
            torch.ops.fastkd_kernels.linear_token_losses(
                *student,
                *constants,
                None,
                settings.packed(),
                reduction,
                predict,
                ctx.wanted if early else [False] * 3,
            )
        )
        ctx.save_for_backward(hidden, weight, bias, to_hidden, to_weight, to_bias, inverse)
        ctx.constants = constants
        ctx.options = settings, reduction, dtype
        ctx.mark_non_differentiable(*losses[1:], prediction)
        ctx.set_materialize_grads(False)
        return *losses, prediction

    @staticmethod
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 8
        *student, to_hidden, to_weight, to_bias, inverse = ctx.saved_tensors
        gradients = (to_hidden, to_weight, to_bias)
        settings, reduction, dtype = ctx.options
        if reduction == "none":
            with torch.no_grad():
                *_, to_hidden, to_weight, to_bias, _ = torch.ops.fastkd_kernels.linear_token_losses(
                    *(None if x is None else x.detach().to(dtype) for x in student),
                    *ctx.constants,
                    upstream.float().contiguous(),
                    settings.packed(),
                    reduction,
                    False,
                    ctx.wanted,
                )
            gradients = (to_hidden, to_weight, to_bias)
            factor = None
        else:
            factor = upstream.float() / gradient_gain(settings, dtype)
            if reduction == "mean":
                rows = max(student[0].shape[0], 1)
                factor = factor * inverse[0] if inverse.numel() else factor / rows
        results: list[Tensor | None] = []
        for wanted, gradient, x in zip(ctx.wanted, gradients, student, strict=True):
            if not wanted:
                results.append(None)
                continue
            grown = gradient.to(x.dtype) if factor is None else scaled(gradient, factor, x.dtype)
            results.append(first_order(grown, *student))
        return *results, *(None,) * 5


def linear_token_losses(
    student: tuple[Tensor, Tensor, Tensor | None],
    dense_teacher: tuple[Tensor | None, Tensor | None, Tensor | None],
    listed_teacher: Teacher,
    target: Tensor | None,
    counted: Tensor | None,
    settings: TokenSettings,
    reduction: str,
    predict: bool,
) -> tuple[Tensor, ...]:
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
    if settings.kd_weight == 0 and settings.rank_weight == 0:
        dense_teacher, listed_teacher = (None, None, None), Teacher()
    teacher_hidden, *teacher_projection = dense_teacher
    teacher = (flat(teacher_hidden, 1), *teacher_projection)
    constants = (
        *(None if x is None else x.to(teacher_dtype) for x in teacher),
        flat(listed_teacher.ids, 1),
        flat(listed_teacher.log_probs, 1),
        flat(target),
        flat(counted),
    )
    *losses, prediction = LinearTokenLosses.apply(
        flat(hidden, 1), weight, bias, constants, settings, reduction, predict, dtype
    )
    positions = hidden.shape[:-1]
    if reduction == "none":
        losses = [column.view(positions) for column in losses]
    return *losses, prediction.view(positions) if predict else prediction
