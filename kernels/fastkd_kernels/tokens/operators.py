"""Token losses of logits: the operator and its autograd Function."""

import torch
from torch import Tensor

from fastkd_kernels.once import first_order, graph_is_freed, scaled
from fastkd_kernels.tokens.launch import RowLosses, Teacher, launch_rows
from fastkd_kernels.tokens.reduce import inverse_count, scale_rows_, sum_rows
from fastkd_kernels.tokens.settings import TokenSettings, gradient_gain


@torch.library.custom_op("fastkd_kernels::dense_token_losses", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, ce, kd, rank, prediction, gradient, divisor's inverse); the last three may be empty.

    student, teacher: (..., V); ids, log_probs: (rows, K); target, counted: (rows,)
    gradient: (rows, V) dloss/dstudent, of the mean's loss only where nothing underflows by it
    """
    chosen = TokenSettings.unpacked(settings)
    vocabulary = student.shape[-1]
    rows = student.numel() // vocabulary
    losses = RowLosses.empty(rows, predict, student.device)
    mean = reduction == "mean"
    divisor = inverse_count(counted) if mean and counted is not None else None
    fraction = 1 / max(rows, 1) if mean and counted is None else 1.0
    gradient = None
    if differentiate:
        gradient = torch.empty((rows, vocabulary), dtype=student.dtype, device=student.device)
    gain = gradient_gain(chosen, student.dtype)
    early = gradient_mean_is_early(student.dtype)
    launch_rows(
        student,
        Teacher(teacher, ids, log_probs),
        target,
        counted,
        chosen,
        losses,
        gradient,
        gain * (fraction if early else 1.0),
        divisor if early else None,
    )
    if reduction == "none":
        loss, ce, kd, rank = (column.clone() for column in losses.columns)
    else:
        loss, ce, kd, rank = sum_rows(losses.columns, fraction, divisor)
    nothing = student.new_empty(0)
    inverse = torch.empty(0, device=student.device) if divisor is None else divisor
    stored = nothing if gradient is None else gradient
    return loss, ce, kd, rank, losses.prediction, stored, inverse


@dense_token_losses_op.register_fake
def _(
    student, teacher, ids, log_probs, target, counted, settings, reduction, predict, differentiate
):
    positions = student.shape[:-1]
    rows = positions.numel()
    size = (rows,) if reduction == "none" else ()
    results = [student.new_empty(size, dtype=torch.float32) for _ in range(4)]
    prediction = student.new_empty(rows if predict else 0, dtype=torch.int64)
    gradient = student.new_empty((rows, student.shape[-1]) if differentiate else 0)
    inverse = counted is not None and reduction == "mean"
    return *results, prediction, gradient, student.new_empty(int(inverse), dtype=torch.float32)


def gradient_mean_is_early(dtype: torch.dtype) -> bool:
    """Whether the stored gradient is already divided by the mean's divisor."""
    return dtype != torch.float16


class DenseTokenLosses(torch.autograd.Function):
    """Keeps the gradient, computed with the loss; the backward only scales it."""

    @staticmethod
    def forward(
        ctx, student, anchor, teacher, ids, log_probs, target, counted, settings, reduction, predict
    ):
        differentiate = ctx.needs_input_grad[0]
        *losses, prediction, gradient, inverse = torch.ops.fastkd_kernels.dense_token_losses(
            student,
            teacher,
            ids,
            log_probs,
            target,
            counted,
            settings.packed(),
            reduction,
            predict,
            differentiate,
        )
        ctx.save_for_backward(gradient, inverse, anchor)
        ctx.shape = student.shape
        ctx.late_factor = 1 / gradient_gain(settings, student.dtype)
        ctx.late_mean = reduction == "mean" and not gradient_mean_is_early(student.dtype)
        ctx.mark_non_differentiable(*losses[1:], prediction)
        ctx.set_materialize_grads(False)
        return *losses, prediction

    @staticmethod
    def backward(ctx, upstream, *_):
        if upstream is None or not ctx.needs_input_grad[0]:
            return (None,) * 10
        gradient, inverse, anchor = ctx.saved_tensors
        factor = upstream.reshape(-1).float()
        if ctx.late_factor != 1:
            factor = factor * ctx.late_factor
        if ctx.late_mean:
            rows = max(gradient.shape[0], 1)
            factor = factor * inverse if inverse.numel() else factor / rows
        if graph_is_freed():
            scale_rows_(gradient, factor)
        else:
            gradient = scaled(gradient, factor.unsqueeze(-1), gradient.dtype)
        return first_order(gradient.view(ctx.shape), anchor), *(None,) * 9


def dense_token_losses(
    student: Tensor,
    teacher: Teacher,
    target: Tensor | None,
    counted: Tensor | None,
    settings: TokenSettings,
    reduction: str,
    predict: bool,
) -> tuple[Tensor, ...]:
    """(loss, ce, kd, rank, prediction): float32 scalars, or (...) for "none"; see `launch_rows`.

    student, teacher.logits: (..., V), any strides; target, counted: (...); prediction: (...)
    int64, or empty where not asked for.
    """
    positions = student.shape[:-1]
    student = student if torch.is_grad_enabled() else student.detach()
    # Nothing of the logits, but a way back to them: a second-order gradient has to find its error.
    anchor = student[..., :0].clone() if student.requires_grad else None
    *losses, prediction = DenseTokenLosses.apply(
        student,
        anchor,
        teacher.logits,
        flat(teacher.ids, 1),
        flat(teacher.log_probs, 1),
        flat(target),
        flat(counted),
        settings,
        reduction,
        predict,
    )
    if reduction == "none":
        losses = [column.view(positions) for column in losses]
    return *losses, prediction.view(positions) if predict else prediction


def flat(tensor: Tensor | None, last: int = 0) -> Tensor | None:
    """(rows,) or, with last=1, (rows, K): contiguous, positions in one dimension."""
    if tensor is None:
        return None
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - last :]).contiguous()
