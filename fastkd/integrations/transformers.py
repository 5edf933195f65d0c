"""Queries and keys of Hugging Face Transformers models, for attention distillation.

    with attention_taps(student) as ours, attention_taps(teacher) as theirs:
        student(**batch)
        with torch.no_grad():
            teacher(**batch)
        loss = align(ours, theirs).loss        # align = AlignToDistill.from_taps(ours, theirs)

Models keep their own attention (SDPA, flash attention, eager): the tap stands between the model and
the function that Transformers' `AttentionInterface` has under the name, and hands everything on.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.taps import AttentionTap, AttentionTaps

SUPPORTED = "5.0 to 5.x"

try:
    import transformers
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
except ImportError as error:
    raise ImportError(
        "fastkd.integrations.transformers needs Transformers "
        f"{SUPPORTED}: pip install 'fastkd[transformers]'"
    ) from error
if int(transformers.__version__.split(".")[0]) != 5:
    raise ImportError(
        f"fastkd.integrations.transformers needs Transformers {SUPPORTED}, "
        f"not {transformers.__version__}"
    )

KINDS = ("encoder", "decoder", "cross")
_CROSS = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")
_TAP = "_fastkd_tap"  # attribute of a tapped model's attention modules
_POSITION_BIAS = "has_relative_attention_bias"  # attribute of T5's attention modules
_INSTEAD = "expected alignment_loss_from_maps with the model's eager attention maps"


@contextlib.contextmanager
def attention_taps(model: PreTrainedModel) -> Iterator["ModelTaps"]:
    """Collects queries and keys of each attention layer in the model's last forward pass.

    The value has `encoder`, `decoder` and `cross`, each an `AttentionTap` or None, like
    `fastkd.AttentionTaps`: queries and keys after rotary embedding, with scale and grouping, and
    lengths from `attention_mask` and `decoder_attention_mask` (or `labels`, where −100 is padding).
    Outputs of the model do not change. Gradient checkpointing must be `use_reentrant=False`.

    Raises InputError, when the taps are read, for attention that queries and keys do not determine:
    a position bias, a soft cap, a sliding window, left padding, packed sequences, a cache.
    """
    taps = ModelTaps(model)
    if any(hasattr(module, _TAP) for module in taps._order):
        raise InputError(f"{type(model).__name__}: is tapped already")
    hook = model.register_forward_pre_hook(taps._begin, with_kwargs=True)
    with _wrapped_functions():
        for module in taps._order:
            setattr(module, _TAP, taps)
        try:
            yield taps
        finally:
            hook.remove()
            for module in taps._order:
                delattr(module, _TAP)


@dataclass
class _Layer:
    """What one attention layer was called with."""

    query: Tensor
    key: Tensor
    scale: float | None
    causal: bool
    refused: str | None  # why the tap cannot serve


class ModelTaps:
    """The taps of one model; see `attention_taps`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._signature = inspect.signature(model.forward)
        self._kinds: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            kind = _kind(name, module)
            if kind:
                self._kinds[module] = kind
        self._order = list(self._kinds)
        if not self._order:
            raise InputError(f"{type(model).__name__}: no attention layers of a known form in it")
        self._layers: dict[nn.Module, _Layer] = {}
        self._inputs: dict[str, Any] = {}
        self._with_grad = True

    @property
    def encoder(self) -> AttentionTap | None:
        return self._tap("encoder")

    @property
    def decoder(self) -> AttentionTap | None:
        return self._tap("decoder")

    @property
    def cross(self) -> AttentionTap | None:
        return self._tap("cross")

    @property
    def maps(self) -> dict[str, int]:
        """Number of attention maps by kind: layers times heads."""
        counts: dict[str, int] = {}
        for module, kind in self._kinds.items():
            counts[kind] = counts.get(kind, 0) + _heads(module)
        return counts

    @property
    def taps(self) -> AttentionTaps:
        """The three kinds as they stand now, to be kept."""
        return AttentionTaps(self.encoder, self.decoder, self.cross)

    def _begin(self, model: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        bound = self._signature.bind_partial(*arguments, **keywords).arguments
        self._inputs = {**bound, **bound.get("kwargs", {})}
        self._layers = {}
        self._with_grad = torch.is_grad_enabled()

    def _record(
        self, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]
    ) -> None:
        # Gradient checkpointing calls a layer again in the backward; its first call counts.
        if module not in self._layers:
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", False) if causal is None else causal
            self._layers[module] = _Layer(
                query,
                key,
                options.get("scaling"),
                bool(causal) and self._kinds[module] != "cross",
                self._refusal(query, options),
            )

    def _refusal(self, query: Tensor, options: dict[str, Any]) -> str | None:
        if options.get("position_bias") is not None:
            return "a position bias"
        if options.get("softcap") is not None:
            return "a soft cap"
        if options.get("sliding_window") is not None:
            return "a sliding window"
        if options.get("cu_seq_lens_q") is not None:
            return "packed sequences"
        if self._with_grad and not torch.is_grad_enabled():
            return "gradient checkpointing with use_reentrant=True (False would do)"
        return None

    def _tap(self, kind: str) -> AttentionTap | None:
        modules = [module for module in self._order if self._kinds[module] == kind]
        if not modules:
            return None
        if any(hasattr(module, _POSITION_BIAS) for module in modules):
            raise InputError(f"taps.{kind}: cannot serve a position bias; {_INSTEAD}")
        missing = [module for module in modules if module not in self._layers]
        if missing:
            raise InputError(f"taps.{kind}: no forward pass of the model within attention_taps yet")
        layers = [self._layers[module] for module in modules]
        for layer in layers:
            if layer.refused:
                raise InputError(f"taps.{kind}: cannot serve {layer.refused}; {_INSTEAD}")
        query_lengths, key_lengths = self._lengths(kind)
        first = layers[0]
        if first.causal and first.query.shape[2] != first.key.shape[2]:
            raise InputError(f"taps.{kind}: cannot serve a pass with a filled cache; {_INSTEAD}")
        return AttentionTap(
            query=[layer.query for layer in layers],
            key=[layer.key for layer in layers],
            scale=first.scale,
            causal=first.causal,
            query_lengths=query_lengths,
            key_lengths=key_lengths,
        )

    def _lengths(self, kind: str) -> tuple[Tensor | None, Tensor | None]:
        """Lengths of the queries and the keys of one kind."""
        self._refuse_packing()
        whole = "encoder" in self._kinds.values() and "decoder" in self._kinds.values()
        source = _lengths_of("attention_mask", self._inputs.get("attention_mask"))
        target = source
        if whole:
            mask = self._inputs.get("decoder_attention_mask")
            labels = self._inputs.get("labels")
            if mask is None and labels is not None:
                mask = labels != -100
            target = _lengths_of("decoder_attention_mask", mask)
        return {"encoder": (source, source), "decoder": (target, target)}.get(
            kind, (target, source)
        )

    def _refuse_packing(self) -> None:
        positions = self._inputs.get("position_ids")
        if positions is None:
            return
        if not bool((positions[..., 1:] > positions[..., :-1]).all()):
            raise InputError(f"position_ids: cannot serve packed sequences; {_INSTEAD}")


def _kind(name: str, module: nn.Module) -> str | None:
    """Which kind of attention a module computes; None where it computes none."""
    if not name or any(True for _ in module.children() if _is_attention(_)):
        return None
    if not _is_attention(module):
        return None
    if any(part in name for part in _CROSS):
        return "cross"
    is_decoder = getattr(module, "is_decoder", False) or getattr(module, "is_causal", False)
    return "decoder" if is_decoder or ".decoder." in f".{name}." else "encoder"


def _is_attention(module: nn.Module) -> bool:
    """Modules that call the attention function hold its scale or, as T5's, a position bias."""
    return "Attention" in type(module).__name__ and (
        hasattr(module, "scaling") or hasattr(module, _POSITION_BIAS)
    )


def _heads(module: nn.Module) -> int:
    for holder in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            if isinstance(count := getattr(holder, name, None), int):
                return count
    raise InputError(f"{type(module).__name__}: does not tell its number of heads")


def _lengths_of(name: str, mask: Tensor | None) -> Tensor | None:
    """(B,) lengths of a mask (B, T) of ones, then zeros."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise InputError(f"{name}: expected (B, T), not {tuple(mask.shape)}; {_INSTEAD}")
    kept = mask != 0
    if not bool((kept[:, 1:] <= kept[:, :-1]).all()):
        raise InputError(f"{name}: cannot serve left padding, expected it at the end; {_INSTEAD}")
    return kept.sum(1)


_originals: dict[str, Callable | None] = {}
_users = 0


@contextlib.contextmanager
def _wrapped_functions() -> Iterator[None]:
    """Every function of the `AttentionInterface` with a tap before it, while anyone taps."""
    global _users
    if _users == 0:
        functions = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
        _originals.update(functions)
        for name, function in functions.items():
            ALL_ATTENTION_FUNCTIONS.register(name, _tapped(function))
        # Models bring an eager function of their own, which this name goes before.
        _originals["eager"] = None
        ALL_ATTENTION_FUNCTIONS.register("eager", _tapped(_own_eager))
    _users += 1
    try:
        yield
    finally:
        _users -= 1
        if _users == 0:
            for name, function in _originals.items():
                if function is None:
                    del ALL_ATTENTION_FUNCTIONS._global_mapping[name]
                else:
                    ALL_ATTENTION_FUNCTIONS.register(name, function)
            _originals.clear()


def _tapped(function: Callable) -> Callable:
    def tapped(module, query, key, value, attention_mask, *arguments, **options):
        taps = getattr(module, _TAP, None)
        if taps is not None:
            taps._record(module, query, key, options)
        return function(module, query, key, value, attention_mask, *arguments, **options)

    return tapped


def _own_eager(module, *arguments, **options):
    return sys.modules[type(module).__module__].eager_attention_forward(
        module, *arguments, **options
    )
