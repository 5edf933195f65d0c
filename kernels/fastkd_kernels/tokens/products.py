"""Matrix products of the linear form, in a type of their own."""

import torch
import torch.nn.functional as F
from torch import Tensor


def product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> None:
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


def fresh_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    if left.dtype == dtype:
        return torch.mm(left, right)
    out = left.new_empty((left.shape[0], right.shape[1]), dtype=dtype)
    product(left, right, out)
    return out


def project(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    if out is None:
        return F.linear(hidden, weight, bias)
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)
