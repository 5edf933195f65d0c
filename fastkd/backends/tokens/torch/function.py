"""The autograd function around a walk over chunks of positions."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from fastkd_kernels.once import only_first_order
from torch import Tensor

from fastkd.backends.tokens.torch.divided import check_same
from fastkd.backends.tokens.torch.numerics import at_hand
from fastkd.backends.tokens.torch.positions import Positions
from fastkd.backends.tokens.torch.totals import Totals
from fastkd.functional.calls import TokenLosses, TokenOptions
from fastkd.functional.divided import is_divided

ONCE = "backend 'torch' of the token losses has no second-order gradient; use backend='reference'"

Gradients = list[Tensor | None]


class Walk(Protocol):
    """A call, but for the tensors that may learn."""

    positions: Positions
    later: Tensor | int  # what gradients of sums are still to be divided by
    shape: torch.Size  # of the positions
    options: TokenOptions

    def run(
        self, learned: Sequence[Tensor | None], upstream: Tensor | None, needed: Sequence[bool]
    ) -> tuple[Totals, Gradients]:
        """The components, and the gradient of their weighted sum times `later`, each position's
        multiplied by `upstream` (N,), in the type inside."""


def token_losses(walk: Walk, *learned: Tensor | None) -> TokenLosses:
    needed = tuple(
        torch.is_grad_enabled() and each is not None and each.requires_grad for each in learned
    )
    if any(needed):
        found = TokenFunction.apply(walk, needed, *learned)  # type: ignore[no-untyped-call]
        return TokenLosses(*found)
    return walk.run(learned, None, needed)[0].reduced(walk.shape)


class TokenFunction(torch.autograd.Function):
    """Sums are differentiated with the loss; a loss of each position is walked again in backward,
    where the weight of each position is known."""

    @staticmethod
    def forward(
        ctx: Any, walk: Walk, needed: tuple[bool, ...], *learned: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.walk, ctx.needed = walk, needed
        ctx.save_for_backward(*learned)
        ctx.set_materialize_grads(False)
        later = walk.options.reduction == "none"
        totals, gradients = walk.run(learned, None, [False] * len(needed) if later else needed)
        ctx.gradients = None if later else gradients
        losses = totals.reduced(walk.shape)
        ctx.mark_non_differentiable(*(each for each in losses[1:] if each is not None))
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        learned = ctx.saved_tensors
        if upstream is None:
            return (None, None, *[None] * len(learned))
        with torch.no_grad():
            gradients = TokenFunction._gradients(ctx, learned, upstream)
            gradients = [
                None if gradient is None else _as(each, gradient)
                for gradient, each in zip(gradients, learned, strict=True)
            ]
        gradients = only_first_order(gradients, (*learned, upstream), ONCE)
        return (None, None, *gradients)

    @staticmethod
    def _gradients(ctx: Any, learned: Sequence[Tensor | None], upstream: Tensor) -> Gradients:
        walk = ctx.walk
        if walk.options.reduction == "none":
            later: Gradients = walk.run(learned, upstream.reshape(-1), ctx.needed)[1]
            return later
        # They are handed out once and scaled in place; a retained graph has them computed again.
        gradients: list[Tensor | None] | None = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            gradients = walk.run(learned, None, ctx.needed)[1]
        for each in learned:
            if each is not None and is_divided(each):
                check_same(upstream, each)
        if not isinstance(walk.later, int) or walk.later != 1:
            upstream = upstream / walk.later
        if at_hand(upstream) and float(upstream) == 1:
            return gradients
        return [None if gradient is None else gradient.mul_(upstream) for gradient in gradients]


def _as(learned: Tensor, gradient: Tensor) -> Tensor:
    gradient = gradient.to(learned.dtype)
    return gradient if gradient.shape == learned.shape else gradient.view_as(learned)
