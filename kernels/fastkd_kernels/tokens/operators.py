"""Token losses of logits: the operator and its autograd Function."""

from typing import Any

import torch
from torch import Tensor

from fastkd_kernels.once import graph_is_freed, only_first_order, runs_at_once, scaled
from fastkd_kernels.tokens.launch import RowLosses, Teacher, launch_rows
from fastkd_kernels.tokens.reduce import inverse_count, scale_rows_, sum_rows
from fastkd_kernels.tokens.settings import TokenSettings, gradient_gain

SECOND_ORDER = "the Triton token losses have no second-order gradient; use backend='reference'"
# Loss, ce, kd and rank, the prediction where asked for, the entropy.
Losses = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]
# Loss, (ce, kd, rank, entropy) as (4, ...), prediction, gradient and the divisor's inverse.
Found = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _dense_losses(
    student: Tensor,  # (..., V)
    teacher: Teacher,
    target: Tensor | None,  # (rows,)
    counted: Tensor | None,  # (rows,)
    settings: TokenSettings,
    reduction: str,
    predict: bool,
    differentiate: bool,
) -> Found:
    vocabulary = student.shape[-1]
    rows = student.numel() // vocabulary
    losses = RowLosses.empty(rows, predict, student)
    fraction, divisor = mean_of(rows, counted, reduction)
    gradient = None
    if differentiate:
        gradient = student.new_empty((rows, vocabulary))
    early = gradient_mean_is_early(student.dtype)
    gain = fraction if early else gradient_gain(settings, student.dtype)
    scale = divisor if early else None
    launch_rows(student, teacher, target, counted, settings, losses, gradient, gain, scale)
    if reduction == "none":
        return losses.loss, losses.parts, losses.prediction, gradient, divisor
    return *sum_rows(losses, fraction, divisor), losses.prediction, gradient, divisor


def mean_of(rows: int, counted: Tensor | None, reduction: str) -> tuple[float, Tensor | None]:
    """What a sum over rows is multiplied by: a number, and (1,) float32 where rows are left out."""
    if reduction != "mean":
        return 1.0, None
    if counted is None:
        return 1 / max(rows, 1), None
    return 1.0, inverse_count(counted)


def as_outputs(found: tuple[Tensor | None, ...], device: torch.device) -> Any:
    """As operators return it: tensors that share no memory."""
    loss, parts, *others = found
    none = (torch.int64, *(torch.float32 for _ in others[1:]))
    rest = (
        torch.empty(0, dtype=dtype, device=device) if each is None else each
        for each, dtype in zip(others, none, strict=True)
    )
    return loss, parts, *rest


@torch.library.custom_op("fastkd::dense_token_losses", mutates_args=())
def dense_token_losses_op(
    student: Tensor,
    teacher: Tensor | None,
    ids: Tensor | None,
    log_probs: Tensor | None,
    target: Tensor | None,
    counted: Tensor | None,
    settings: list[float],
    reduction: str,
    predict: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, (ce, kd, rank, entropy), prediction, gradient, divisor's inverse).

    The last three may be empty.

    student, teacher: (..., V); ids, log_probs: (rows, K); target, counted: (rows,)
    gradient: (rows, V) dloss/dstudent, of the mean's loss only where nothing underflows by it
    """
    chosen = TokenSettings.unpacked(settings)
    given = Teacher(teacher, ids, log_probs)
    found = _dense_losses(
        student, given, target, counted, chosen, reduction, predict, differentiate
    )
    return as_outputs(found, student.device)


@dense_token_losses_op.register_fake
def _(
    student, teacher, ids, log_probs, target, counted, settings, reduction, predict, differentiate
):
    positions = student.shape[:-1]
    rows = positions.numel()
    size = (rows,) if reduction == "none" else ()
    loss, parts = (student.new_empty(each, dtype=torch.float32) for each in (size, (4, *size)))
    prediction = student.new_empty(rows if predict else 0, dtype=torch.int64)
    shape, dtype = (
        ((rows, student.shape[-1]), student.dtype) if differentiate else (0, torch.float32)
    )
    gradient = student.new_empty(shape, dtype=dtype)
    inverse = counted is not None and reduction == "mean"
    return loss, parts, prediction, gradient, student.new_empty(int(inverse), dtype=torch.float32)


def gradient_mean_is_early(dtype: torch.dtype) -> bool:
    """Whether the stored gradient is already divided by the mean's divisor."""
    return dtype != torch.float16


class DenseTokenLosses(torch.autograd.Function):
    """Keeps the gradient, computed with the loss; the backward only scales it."""

    @staticmethod
    def forward(ctx, student, constants, settings, reduction, predict):
        teacher, target, counted = constants
        differentiate = ctx.needs_input_grad[0]
        if runs_at_once(student, *teacher, target, counted):
            loss, parts, prediction, gradient, inverse = _dense_losses(
                student, teacher, target, counted, settings, reduction, predict, differentiate
            )
        else:
            loss, parts, prediction, gradient, inverse = torch.ops.fastkd.dense_token_losses(
                student, *teacher, target, counted, settings.packed(), reduction, predict,
                differentiate,
            )  # fmt: skip
        # Nothing, but a way back to the student: a second-order gradient has to find its error.
        anchor = student.new_empty(0) if differentiate else None
        ctx.save_for_backward(gradient, inverse, anchor)
        ctx.shape, ctx.options = student.shape, (settings, student.dtype, reduction == "mean")
        predicted = () if prediction is None else (prediction,)
        ctx.mark_non_differentiable(parts, *predicted)
        ctx.set_materialize_grads(False)
        return loss, parts, prediction, anchor

    @staticmethod
    def backward(ctx, upstream, *_):
        if upstream is None or not ctx.needs_input_grad[0]:
            return (None,) * 5
        gradient, inverse, anchor = ctx.saved_tensors
        settings, dtype, mean = ctx.options
        factor = late_factor(upstream.detach(), settings, dtype, mean, inverse, gradient.shape[0])
        if graph_is_freed():
            if runs_at_once(factor):
                scale_rows_(gradient, factor)
            else:
                gradient.mul_(factor.reshape(-1, 1))
        else:
            gradient = scaled(gradient, factor.reshape(-1, 1).float(), gradient.dtype)
        if gradient.shape != ctx.shape:
            gradient = gradient.view(ctx.shape)
        gradient = only_first_order([gradient], [anchor], SECOND_ORDER)[0]
        return gradient, *(None,) * 4


def late_factor(
    upstream: Tensor,
    settings: TokenSettings,
    dtype: torch.dtype,
    mean: bool,
    inverse: Tensor | None,
    rows: int,
) -> Tensor:
    """What a gradient that was stored in `dtype` has to be multiplied by."""
    if gradient_mean_is_early(dtype):
        return upstream
    factor = upstream.float() / gradient_gain(settings, dtype)
    if mean and inverse is not None and inverse.numel():
        return factor * inverse
    return factor / max(rows, 1) if mean else factor


def dense_token_losses(
    student: Tensor,
    teacher: Teacher,
    target: Tensor | None,
    counted: Tensor | None,
    settings: TokenSettings,
    reduction: str,
    predict: bool,
) -> Losses:
    """(loss, ce, kd, rank, prediction, entropy): float32, (...) for "none"; see `launch_rows`.

    student, teacher.logits: (..., V), any strides; target, counted: (...); prediction: (...)
    int64, where asked for.
    """
    positions = student.shape[:-1]
    if student.requires_grad and not torch.is_grad_enabled():
        student = student.detach()
    if teacher.ids is not None:
        teacher = Teacher(None, flat(teacher.ids, 1), flat(teacher.log_probs, 1))
    constants = (teacher, flat(target), flat(counted))
    loss, parts, prediction, _ = DenseTokenLosses.apply(
        student, constants, settings, reduction, predict
    )
    return shaped(loss, parts, prediction, positions, reduction, predict)


def shaped(
    loss: Tensor,
    parts: Tensor,
    prediction: Tensor | None,
    positions: torch.Size,
    reduction: str,
    predict: bool,
) -> Losses:
    """What a Function returned by rows, by positions."""
    if len(positions) != 1:
        if reduction == "none":
            loss, parts = loss.view(positions), parts.view(4, *positions)
        if prediction is not None and predict:
            prediction = prediction.view(positions)
    ce, kd, rank, entropy = parts.unbind(0)
    return loss, ce, kd, rank, prediction if predict else None, entropy


def flat(tensor: Tensor | None, last: int = 0) -> Tensor | None:
    """(rows,) or, with last=1, (rows, K): contiguous, positions in one dimension."""
    if tensor is None or (tensor.dim() == 1 + last and tensor.is_contiguous()):
        return tensor
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - last :]).contiguous()
