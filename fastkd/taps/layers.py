"""One attention layer that is recorded: nn.MultiheadAttention, or two projections."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from fastkd.errors import InputError
from fastkd.taps.calls import HIDDEN, AttentionCall, lengths_of, shared_refusal
from fastkd.taps.tap import AttentionTap

_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)


@dataclass(frozen=True)
class Projections:
    """Attention whose queries and keys are what two modules give.

    query, key: modules of the model, or their names in it, that give (B, T, heads · head size); one
        and the same where it gives queries, keys and values beside each other
    heads, key_heads: of queries, and of keys where there are fewer (grouped-query)
    scale, causal: as in `AttentionTap`
    batch_first: whether they give (B, T, *); False: (T, B, *)

    What is done to queries and keys after these modules, such as rotary embedding, is not seen.
    Lengths are not either: give them to the loss, `align(ours, theirs, key_lengths=…)`.
    """

    query: nn.Module | str
    key: nn.Module | str
    heads: int
    key_heads: int | None = None
    scale: float | None = None
    causal: bool = False
    batch_first: bool = True


class Layer(Protocol):
    def hooks(self) -> Iterator[RemovableHandle]: ...
    def begin(self, with_grad: bool) -> None: ...
    def end(self) -> None: ...
    def missed(self) -> str | None: ...
    def refused(self) -> str | None: ...
    def tap(self, name: str, instead: str) -> AttentionTap: ...


def layer_of(model: nn.Module, name: str, given: Any) -> Layer:
    """name: what errors call it"""
    if isinstance(given, Projections):
        query, key = (_module(model, name, side) for side in (given.query, given.key))
        return _Projected(given, query, key)
    module = _module(model, name, given)
    if not isinstance(module, nn.MultiheadAttention):
        raise InputError(
            f"{name}: expected nn.MultiheadAttention or Projections, not {type(module).__name__}"
        )
    if type(module).forward is not nn.MultiheadAttention.forward:
        raise InputError(
            f"{name}: {type(module).__name__} has a forward of its own; expected "
            "nn.MultiheadAttention itself, or Projections of what gives its queries and keys"
        )
    return _Multihead(module, name)


def _module(model: nn.Module, name: str, given: Any) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    try:
        return model.get_submodule(given)
    except AttributeError:
        raise InputError(f"{name}: {type(model).__name__} has no module {given!r}") from None


class _Watched(ABC):
    """What happens to a layer in one pass of its model."""

    def __init__(self) -> None:
        self._running = self._began = self._with_grad = False
        self._refused: str | None = None

    def begin(self, with_grad: bool) -> None:
        self._running, self._began, self._with_grad, self._refused = True, True, with_grad, None
        self.forget()

    def end(self) -> None:
        self._running = False

    @abstractmethod
    def forget(self) -> None: ...

    def taken(self, before: Any) -> bool:
        """Whether a call is one of the pass that is recorded; `before`: what was taken there."""
        # Gradient checkpointing calls a layer again in the backward pass.
        if not self._running:
            return False
        if self._with_grad and not torch.is_grad_enabled():
            self._refused = (
                "cannot serve gradient checkpointing with use_reentrant=True (False would do)"
            )
        if before is not None:
            self._refused = "cannot serve a layer that attends twice in a pass"
        return True

    def told(self, *taken: Any) -> str | None:
        """Why the pass left nothing to make a tap of."""
        if not self._began:
            return "no forward pass of the model within record yet"
        if self._refused is None and any(each is None for each in taken):
            return "was not called in the model's last pass"
        return self._refused


class _Multihead(_Watched):
    def __init__(self, module: nn.MultiheadAttention, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.call: tuple[Tensor, Tensor, dict[str, Any]] | None = None

    def hooks(self) -> Iterator[RemovableHandle]:
        yield self.module.register_forward_pre_hook(self._take, with_kwargs=True)

    def forget(self) -> None:
        self.call = None

    def _take(self, module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        if not self.taken(self.call):
            return
        given = _SIGNATURE.bind(module, *arguments, **keywords).arguments
        query, key = given["query"], given["key"]
        if query.is_nested or key.is_nested:  # which PyTorch takes on its fast path alone
            raise InputError(f"{self.name}: expected padded tensors and a mask, not nested ones")
        if query.dim() != 3:
            self._refused = "cannot serve queries that are not (B, T, width) or (T, B, width)"
            return
        if self.module.add_zero_attn or self.module.bias_k is not None:
            self._refused = "cannot serve keys that are added to the sequence"
            return
        self.call = *self._projected(query, key), given

    def _projected(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        module, width = self.module, self.module.embed_dim
        if module._qkv_same_embed_dim:
            weights = module.in_proj_weight.split(width)[:2]
        else:
            weights = module.q_proj_weight, module.k_proj_weight
        biases = (None,) * 2 if module.in_proj_bias is None else module.in_proj_bias.split(width)
        sides = []
        for given, weight, bias in zip((query, key), weights, biases, strict=False):
            side = linear(given if module.batch_first else given.transpose(0, 1), weight, bias)
            sides.append(_by_heads(side, module.num_heads))
        return sides[0], sides[1]

    def missed(self) -> str | None:
        return self.told(self.call)

    def refused(self) -> str | None:
        if (missed := self.missed()) is not None:
            return missed
        if (found := shared_refusal([self._attention()], None, None)) is not None:
            return f"cannot serve {found}"
        return None

    def _attention(self) -> AttentionCall:
        assert self.call is not None
        query, key, given = self.call
        mask, causal = given.get("attn_mask"), False
        if mask is not None:
            mask = ~mask if mask.dtype == torch.bool else mask
            mask = mask.unflatten(0, query.shape[:2]) if mask.dim() == 3 else mask[None, None]
            # What it is, if not all that is seen; whether it is that is compared afterwards.
            causal = not bool((mask if mask.dtype == torch.bool else mask == 0).all())
        return AttentionCall(query, key, mask, None, causal, None)

    def tap(self, name: str, instead: str) -> AttentionTap:
        assert self.call is not None
        attention, given = self._attention(), self.call[2]
        padding = given.get("key_padding_mask")
        if padding is not None:
            hides = padding if padding.dtype == torch.bool else padding <= HIDDEN
            if not bool((hides | (padding == 0)).all()):
                raise InputError(f"{name}: cannot serve a bias of keys; {instead}")
            padding = ~hides
        lengths = lengths_of(f"{name}: key_padding_mask", padding, instead)
        itself = given["query"] is given["key"]
        return AttentionTap(
            query=[attention.query],
            key=[attention.key],
            causal=attention.causal,
            query_lengths=lengths if itself else None,
            key_lengths=lengths,
        )


class _Projected(_Watched):
    def __init__(self, given: Projections, query: nn.Module, key: nn.Module) -> None:
        super().__init__()
        self.given, self.modules = given, (query, key)
        self.query: Tensor | None = None
        self.key: Tensor | None = None

    def hooks(self) -> Iterator[RemovableHandle]:
        query, key = self.modules
        if query is key:
            yield query.register_forward_hook(self._take_all)
        else:
            yield query.register_forward_hook(self._take("query"))
            yield key.register_forward_hook(self._take("key"))

    def forget(self) -> None:
        self.query = self.key = None

    @property
    def key_heads(self) -> int:
        return self.given.key_heads or self.given.heads

    def _take(self, side: str) -> Callable[..., None]:
        heads = self.given.heads if side == "query" else self.key_heads

        def take(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if self.taken(getattr(self, side)) and self._fits(output, heads):
                setattr(self, side, self._by_heads(output, heads))

        return take

    def _take_all(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        heads, key_heads = self.given.heads, self.key_heads
        if not self.taken(self.query) or not self._fits(output, heads + 2 * key_heads):
            return
        size = output.shape[-1] // (heads + 2 * key_heads)
        query, key, _ = output.split([heads * size, key_heads * size, key_heads * size], dim=-1)
        self.query, self.key = self._by_heads(query, heads), self._by_heads(key, key_heads)

    def _by_heads(self, states: Tensor, heads: int) -> Tensor:
        return _by_heads(states if self.given.batch_first else states.transpose(0, 1), heads)

    def _fits(self, output: Tensor, heads: int) -> bool:
        fits = output.dim() == 3 and not output.shape[-1] % heads
        if not fits:
            axes = "B, T" if self.given.batch_first else "T, B"
            expected = f"({axes}, {heads} · head size)"
            self._refused = f"its projection gives {tuple(output.shape)}; expected {expected}"
        return fits

    def missed(self) -> str | None:
        return self.told(self.query, self.key)

    def refused(self) -> str | None:
        return self.missed()

    def tap(self, name: str, instead: str) -> AttentionTap:
        assert self.query is not None and self.key is not None
        return AttentionTap([self.query], [self.key], self.given.scale, self.given.causal)


def _by_heads(states: Tensor, heads: int) -> Tensor:
    """(B, T, heads · size) as (B, heads, T, size)."""
    by_heads: Tensor = states.unflatten(-1, (heads, -1))
    return by_heads.transpose(1, 2)
