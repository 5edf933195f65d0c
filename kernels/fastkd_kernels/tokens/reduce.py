"""Sums over rows in a fixed order, and the factor of a stored gradient."""

import torch
import triton
import triton.language as tl

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
def token_sums_fwd(
    losses, ces, kds, ranks, loss, ce, kd, rank, scale, gain, rows, BLOCK_ROWS: tl.constexpr
):
    """Sums of four columns (rows,), each times `gain` and `scale`, where there is one."""
    loss_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    ce_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    kd_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    rank_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = row < rows
        loss_sum += tl.load(losses + row, mask=inside, other=0.0)
        ce_sum += tl.load(ces + row, mask=inside, other=0.0)
        kd_sum += tl.load(kds + row, mask=inside, other=0.0)
        rank_sum += tl.load(ranks + row, mask=inside, other=0.0)
    factor = gain
    if scale is not None:
        factor *= tl.load(scale)
    tl.store(loss, tl.sum(loss_sum, 0) * factor)
    tl.store(ce, tl.sum(ce_sum, 0) * factor)
    tl.store(kd, tl.sum(kd_sum, 0) * factor)
    tl.store(rank, tl.sum(rank_sum, 0) * factor)


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


def inverse_count(counted: torch.Tensor) -> torch.Tensor:
    """(1,) float32: 1 / number of true values of `counted` (rows,), at least 1 of them."""
    inverse = torch.empty(1, dtype=torch.float32, device=counted.device)
    inverse_count_fwd[(1,)](counted, inverse, counted.numel(), BLOCK_ROWS=_BLOCK_ROWS)
    return inverse


def sum_rows(
    columns: tuple[torch.Tensor, ...], gain: float, scale: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Four float32 scalars: each column's sum times `gain` and `scale` (1,)."""
    sums = tuple(column.new_empty(()) for column in columns)
    token_sums_fwd[(1,)](*columns, *sums, scale, gain, columns[0].numel(), BLOCK_ROWS=_BLOCK_ROWS)
    return sums


def scale_rows_(gradient: torch.Tensor, factor: torch.Tensor) -> None:
    """gradient (rows, V), contiguous, times `factor`: (rows,) or a single number, in place."""
    rows, vocabulary = gradient.shape
    if rows:
        step = 0 if factor.numel() == 1 else 1
        factor = factor.reshape(-1).contiguous()
        scale_rows_bwd[(rows,)](gradient, factor, vocabulary, step, BLOCK=_BLOCK_SCALE)


def offline_cases():
    from fastkd_kernels.offline import Case

    yield Case(
        inverse_count_fwd,
        "",
        {"counted": "*u1", "inverse": "*fp32", "rows": "i32", "BLOCK_ROWS": _BLOCK_ROWS},
    )
    columns = ("losses", "ces", "kds", "ranks", "loss", "ce", "kd", "rank")
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
