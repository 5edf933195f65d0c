"""How far the logits of a model may be from those of its states, by the precision of its head."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastkd.terms.passes import Projection

_ROWS = 64  # of logits that are compared
_IDS = 8192  # of the vocabulary, at once


@dataclass
class Computed:
    """The type in which a projection gave its output; None: it was not called."""

    dtype: torch.dtype | None = None


@contextlib.contextmanager
def computed_in(module: nn.Module) -> Iterator[Computed]:
    """Within, notes the type of a projection's output, which autocast decides."""
    computed = Computed()

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            computed.dtype = output.dtype

    hook = module.register_forward_hook(note, prepend=True)
    try:
        yield computed
    finally:
        hook.remove()


def precision_of(logits: Tensor, computed: Computed) -> float:
    """The distance of 1 to the next number, as logits and the product behind them have it."""
    types = {logits.dtype, computed.dtype or logits.dtype}
    precision = max(torch.finfo(kind).eps for kind in types)
    if types == {torch.float64}:
        return precision
    return max(precision, _of_products(logits.device))


def _of_products(device: torch.device) -> float:
    """Of float32 products, which may round what enters them, to TF32 or bfloat16."""
    values = 1 + torch.rand(128, 128, generator=torch.Generator().manual_seed(0)).to(device)
    kept = values @ torch.eye(128, device=device)
    return 2 * float((kept - values).abs().max())


def loss_bound(loss: Tensor) -> float:
    """How far a model's loss may be from the cross-entropy of its logits.

    Both are sums of float32, of another order; a loss in a narrower type has its errors of
    each logarithm, of its sum and of its result.
    """
    size = 1 + abs(float(loss))
    narrow = 0.0 if loss.dtype in (torch.float32, torch.float64) else torch.finfo(loss.dtype).eps
    return (1e-5 + 4 * narrow) * size


def some_of(counted: Tensor) -> tuple[Tensor, Tensor]:
    """Where some of those that count stand in (B, T): rows and times."""
    places = counted.nonzero()
    chosen = torch.linspace(0, len(places) - 1, min(len(places), _ROWS)).long()
    rows, times = places[chosen.to(places.device)].unbind(1)
    return rows, times


def wrong_logits(
    projection: Projection, states: Tensor, logits: Tensor, precision: float
) -> str | None:
    """Which of the logits (rows, V) is none of `states` (rows, width); None where all are.

    With u the precision, z a logit and h wᵀ the product behind it, they may differ by
    4u · |z| + 8u · √(h² w²ᵀ): what scale, offset and soft cap round, and errors of the product's
    terms as independent ones.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    given, logits = projection.entered(states).to(wide), logits.to(wide)
    worst, wrong = 1.0, None
    for start in range(0, logits.shape[1], _IDS):
        ids = slice(start, start + _IDS)
        weight, expected = projection.weight[ids].to(wide), logits[:, ids]
        bias = None if projection.bias is None else projection.bias[ids].to(wide)
        found = linear(given, weight, bias)
        size = 4 * found.abs() + 8 * linear(given.square(), weight.square()).sqrt()
        if bias is not None:
            size = size + 4 * bias.abs()
        if (cap := projection.soft_cap) is not None:
            found = cap * (found / cap).tanh()
        ratio = (found - expected).abs() / (precision * size)
        # Of banned ids, -inf beside -inf is no difference.
        ratio = torch.where(found == expected, 0.0, ratio.nan_to_num(torch.inf))
        most, place = ratio.flatten().max(0)
        if float(most) > worst:
            pair = float(expected.flatten()[place]), float(found.flatten()[place])
            worst, wrong = (
                float(most),
                "one of its logits {:.6g}, of its states {:.6g}".format(*pair),
            )
    return wrong
