"""Output projections as weights: linear layers as they are, with PEFT's adapters, or quantised."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastkd.errors import InputError
from fastkd.integrations.sharded import own_class

_ROWS = 256  # of the identity that a layer is asked at once


Held = Callable[[Tensor], Tensor]


def _itself(parameter: Tensor) -> Tensor:
    return parameter


@dataclass(frozen=True)
class Weights:
    """logits z = extended(states) · weightᵀ + bias.

    weight: (V, width + ranks)
    extended: what adapters put beside the states (*, width); None: nothing
    """

    weight: Tensor
    bias: Tensor | None = None
    extended: Callable[[Tensor], Tensor] | None = None


def weights_of(module: Any, held: Held = _itself) -> Weights | None:
    """Of a layer that trains, as it stands now; None where its form is not known.

    held: makes of a parameter what the losses take
    """
    if is_plain(module) or _has_no_more_rows(module):
        return Weights(held(module.weight), None if module.bias is None else held(module.bias))
    if _is_peft(module, "utils.other", "ModulesToSaveWrapper"):
        chosen = module.original_module
        # One adapter at most is active, as PEFT itself expects of them.
        if not module.disable_adapters and module.active_adapters[0] in module.modules_to_save:
            chosen = module.modules_to_save[module.active_adapters[0]]
        return weights_of(chosen, held)
    if _is_peft(module, "utils.other", "TrainableTokensWrapper"):
        base = module.original_module
        if not is_plain(base):
            return None
        return Weights(base.weight if module.disable_adapters else module.weight, base.bias)
    if _is_peft(module, "tuners.lora.layer", "Linear"):
        return _adapted(module, held)
    return None


def _has_no_more_rows(module: Any) -> bool:
    """Whether it is a layer of Idefics to which no words were added; of others it has no loss."""
    added = getattr(module, "out_additional_features", None)
    return own_class(module).__name__ == "IdeficsDecoupledLinear" and added == 0


def is_plain(module: Any) -> bool:
    # Parametrized ones are subclasses, whose weight is computed when it is read.
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and not module.weight.is_meta
    )


def size_of(module: Any) -> tuple[int, int]:
    """(V, width)"""
    if is_plain(module):
        vocabulary, width = module.weight.shape
        return vocabulary, width
    inner: Any
    for inner in (module, getattr(module, "original_module", None)):
        if isinstance(getattr(inner, "out_features", None), int):
            return int(inner.out_features), int(inner.in_features)
    raise TypeError


def _is_peft(module: Any, where: str, name: str) -> bool:
    defined = sys.modules.get(f"peft.{where}")
    return defined is not None and own_class(module) is getattr(defined, name, None)


def _adapted(module: Any, held: Held) -> Weights | None:
    """LoRA: x Wᵀ + s · dropout(x) Aᵀ Bᵀ is [x, s · dropout(x) Aᵀ] · [W, B]ᵀ."""
    base = weights_of(module.base_layer, held)
    if base is None or base.extended is not None or module.fan_in_fan_out:
        return None
    if module.disable_adapters and module.merged:  # its pass would unmerge it
        return None
    if module.disable_adapters or module.merged:
        return base
    active = [name for name in module.active_adapters if name in module.lora_A]
    if any(name in module.lora_variant for name in active):
        return None
    weight, bias = base.weight, base.bias
    for name in active:
        if (more := module.lora_B[name].bias) is not None:
            more = module.scaling[name] * held(more).to(weight.dtype)
            bias = more if bias is None else bias + more

    def extended(states: Tensor) -> Tensor:
        ranks = []
        for name in active:
            low = held(module.lora_A[name].weight)
            given = module.lora_dropout[name](states.to(low.dtype))
            ranks.append((module.scaling[name] * linear(given, low)).to(states.dtype))
        return torch.cat([states, *ranks], dim=-1)

    columns = [held(module.lora_B[name].weight).to(weight.dtype) for name in active]
    return Weights(torch.cat([weight, *columns], dim=1), bias, extended)


def asked(module: Any, states: Tensor, name: str) -> Weights:
    """Of a frozen layer of any form, which is asked what it makes of the identity.

    states: (*, width) that entered it; what it makes of some of them is compared

    Raises InputError for a layer that is not linear, as those that quantise what enters them.
    """
    vocabulary, width = size_of(module)
    like: dict[str, Any] = {"device": states.device, "dtype": states.dtype}
    forward = module.forward  # past the hooks, which are learned apart
    with torch.no_grad():
        bias = forward(torch.zeros(1, width, **like))[0]
        weight = torch.empty(vocabulary, width, **like)
        for start in range(0, width, _ROWS):
            stop = min(start + _ROWS, width)
            rows = torch.zeros(stop - start, width, **like)
            rows[torch.arange(stop - start), torch.arange(start, stop)] = 1
            weight[:, start:stop] = (forward(rows) - bias).T
        some = states.detach().flatten(0, -2)[:4]
        found, expected = forward(some).float(), linear(some, weight, bias).float()
        # Errors of products and of their terms, as sums of independent ones.
        spread = linear(some.float().square(), weight.float().square()).sqrt()
        size = spread + expected.abs() + bias.float().abs()
        close = (found - expected).abs() <= 8 * torch.finfo(weight.dtype).eps * size
    if not bool(close.all()):
        raise InputError(
            f"{name}: its output embeddings ({type(module).__name__}) are not linear in what "
            "enters them; expected ones whose weight alone is quantised"
        )
    return Weights(weight, bias if bool(bias.any()) else None)
