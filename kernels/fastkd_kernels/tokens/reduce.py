"""Sums over rows in a fixed order, and the factor of a stored gradient."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastkd_kernels.launching import Step, step
from fastkd_kernels.tokens.launch import RowLosses

_BLOCK_ROWS = 1024
_BLOCK_SCALE = 4096


@triton.jit(do_not_specialize=["rows"])
def inverse_count_fwd(counted, inverse, rows, BLOCK_ROWS: tl.constexpr):
    """1 / max(number of counted rows, 1)."""
    amount = tl.zeros([BLOCK_ROWS], tl.int32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        amount += (tl.load(counted + row, mask=row < rows, other=0) != 0).to(tl.int32)
    tl.store(inverse, 1.0 / tl.maximum(tl.sum(amount, 0), 1).to(tl.float32))


@triton.jit(do_not_specialize=["rows"])
def token_sums_fwd(losses, parts, scale, loss, sums, gain, rows, BLOCK_ROWS: tl.constexpr):
    """Sums over rows of losses (rows,) and parts (4, rows), times `gain` and `scale`, if any."""
    loss_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    ce_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    kd_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    rank_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    entropy_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    kds = parts + rows.to(tl.int64)
    ranks = kds + rows.to(tl.int64)
    entropies = ranks + rows.to(tl.int64)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = row < rows
        loss_sum += tl.load(losses + row, mask=inside, other=0.0)
        ce_sum += tl.load(parts + row, mask=inside, other=0.0)
        kd_sum += tl.load(kds + row, mask=inside, other=0.0)
        rank_sum += tl.load(ranks + row, mask=inside, other=0.0)
        entropy_sum += tl.load(entropies + row, mask=inside, other=0.0)
    factor = gain
    if scale is not None:
        factor *= tl.load(scale)
    tl.store(loss, tl.sum(loss_sum, 0) * factor)
    tl.store(sums, tl.sum(ce_sum, 0) * factor)
    tl.store(sums + 1, tl.sum(kd_sum, 0) * factor)
    tl.store(sums + 2, tl.sum(rank_sum, 0) * factor)
    tl.store(sums + 3, tl.sum(entropy_sum, 0) * factor)


@triton.jit(do_not_specialize=["vocabulary"])
def scale_rows_bwd(gradient, factor, vocabulary, factor_step: tl.constexpr, BLOCK: tl.constexpr):
    """gradient (rows, V) *= factor, per row or one for all; nothing is touched where it is 1."""
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(factor + row * factor_step).to(tl.float32)
    if value != 1.0:
        gradient += row * vocabulary
        for start in range(0, vocabulary, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < vocabulary
            scaled = tl.load(gradient + at, mask=inside).to(tl.float32) * value
            tl.store(gradient + at, scaled.to(gradient.dtype.element_ty), mask=inside)


def inverse_count(counted: Tensor) -> Tensor:
    """(1,) float32: 1 / number of true values of `counted` (rows,), at least 1 of them."""
    inverse = counted.new_empty(1, dtype=torch.float32)
    _counting(counted.device).launch((counted, inverse), 1, (counted.numel(),))
    return inverse


def sum_rows(losses: RowLosses, gain: float, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss () and its components (4,): sums over rows times `gain` and `scale` (1,), if any."""
    loss, sums = losses.loss.new_empty(()), losses.loss.new_empty(4)
    _summing(scale is not None, loss.device).launch(
        (losses.loss, losses.parts, scale, loss, sums), 1, (gain, losses.loss.shape[0])
    )
    return loss, sums


def scale_rows_(gradient: Tensor, factor: Tensor) -> None:
    """gradient (rows, V), contiguous, times `factor`: (rows,) or a single number, in place."""
    rows, vocabulary = gradient.shape
    if not rows:
        return
    factor_step = 0
    if factor.numel() > 1:
        factor, factor_step = factor.reshape(-1).contiguous(), 1
    scaling = _scaling(vocabulary, factor_step, gradient.dtype, factor.dtype, gradient.device)
    scaling.launch((gradient, factor), rows)


@lru_cache(maxsize=64)
def _counting(device: torch.device) -> Step:
    return _step(inverse_count_fwd, varying=("rows",), BLOCK_ROWS=_BLOCK_ROWS)


@lru_cache(maxsize=64)
def _summing(*of: object) -> Step:
    return _step(token_sums_fwd, varying=("gain", "rows"), BLOCK_ROWS=_BLOCK_ROWS)


@lru_cache(maxsize=256)
def _scaling(vocabulary: int, factor_step: int, *of: object) -> Step:
    """of: what else a compiled kernel depends on."""
    sizes = {"vocabulary": vocabulary}
    return _step(scale_rows_bwd, scalars=sizes, factor_step=factor_step, BLOCK=_BLOCK_SCALE)


def _step(kernel, varying=(), scalars=None, **constants) -> Step:
    scalars = scalars or {}
    others = {*varying, *scalars, *constants}
    tensors = {name: name for name in kernel.arg_names if name not in others}
    return step(kernel, 0, tensors, scalars, constants, {}, varying)


def offline_cases():
    from fastkd_kernels.offline import Case

    yield Case(
        inverse_count_fwd,
        "",
        {"counted": "*u1", "inverse": "*fp32", "rows": "i32", "BLOCK_ROWS": _BLOCK_ROWS},
    )
    columns = ("losses", "parts", "loss", "sums")
    for scale in ("*fp32", None):
        yield Case(
            token_sums_fwd,
            "sum" if scale is None else "mean",
            dict.fromkeys(columns, "*fp32")
            | {"scale": scale, "gain": "fp32", "rows": "i32", "BLOCK_ROWS": _BLOCK_ROWS},
        )
    for dtype in ("*bf16", "*fp16", "*fp32"):
        yield Case(
            scale_rows_bwd,
            dtype[1:],
            {
                "gradient": dtype,
                "factor": "*fp32",
                "vocabulary": "i32",
                "factor_step": 0,
                "BLOCK": _BLOCK_SCALE,
            },
        )
