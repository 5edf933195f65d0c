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
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.integrations.sharded import own_class
from fastkd.taps import AttentionTap
from fastkd.taps.calls import AttentionCall, lengths_of, shared_refusal
from fastkd.taps.tap import Tapped

SUPPORTED = "5.1 to 5.x"  # before, eager attention goes past the interface

try:
    import transformers
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
except ImportError as error:
    raise ImportError(
        "fastkd.integrations.transformers needs Transformers "
        f"{SUPPORTED}: pip install 'fastkd[transformers]'"
    ) from error
if not (5, 1) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (6, 0):
    raise ImportError(
        f"fastkd.integrations.transformers needs Transformers {SUPPORTED}, "
        f"not {transformers.__version__}"
    )

KINDS = ("encoder", "decoder", "cross")
_CROSS = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")
_TAP = "_fastkd_tap"  # attribute of a tapped model's attention modules
_POSITION_BIAS = "has_relative_attention_bias"  # attribute of T5's attention modules
_INSTEAD = "expected alignment_loss_from_maps with the model's eager attention maps"


# Options of Transformers' attention functions that change maps beyond queries and keys.
_OPTIONS = {
    "position_bias": "a position bias",
    "softcap": "a soft cap",
    "cu_seq_lens_q": "packed sequences",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
}


@contextlib.contextmanager
def attention_taps(model: PreTrainedModel) -> Iterator["ModelTaps"]:
    """Collects queries and keys of each attention layer in the model's last forward pass.

    The value has `encoder`, `decoder` and `cross`, each an `AttentionTap` or None, like
    `fastkd.AttentionTaps`: queries and keys after rotary embedding, with scale and grouping, and
    lengths from `attention_mask` and `decoder_attention_mask` (or `labels`, where −100 is padding).
    Outputs of the model do not change. Gradient checkpointing must be `use_reentrant=False`.

    Raises InputError, when the taps are read, for attention that queries and keys do not determine:
    a position bias, a soft cap, a sliding window shorter than the keys, left padding, packed
    sequences, sinks, any other mask, a cache; and for what does not pass through the interface.
    """
    taps = ModelTaps(model)
    if any(hasattr(module, _TAP) for module in taps._order):
        raise InputError(f"{type(model).__name__}: is tapped already")
    hooks = [
        model.register_forward_pre_hook(taps._begin, prepend=True, with_kwargs=True),
        model.register_forward_hook(taps._end),
    ]
    with _wrapped_functions():
        for module in taps._order:
            setattr(module, _TAP, taps)
        try:
            yield taps
        finally:
            for hook in hooks:
                hook.remove()
            for module in taps._order:
                delattr(module, _TAP)


class ModelTaps(Tapped):
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
            raise InputError(
                f"{type(model).__name__}: no attention layers of a known form in it; {_INSTEAD}"
            )
        self._calls: dict[nn.Module, AttentionCall] = {}
        self._kept = False
        self._state = "new"  # "running" within a forward pass, "done" after it
        self._inputs: dict[str, Any] = {}
        self._with_grad = True

    @property
    def maps(self) -> dict[str, int]:
        """Number of attention maps by kind: layers times heads."""
        counts: dict[str, int] = {}
        for module, kind in self._kinds.items():
            counts[kind] = counts.get(kind, 0) + _heads(module)
        return counts

    def keep(self) -> None:
        """Ends a pass in its own hooks; passes after it leave the taps as they are."""
        self._state, self._kept = "done", True

    def _begin(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        if self._kept:
            return
        bound = self._signature.bind_partial(*arguments, **keywords).arguments
        self._inputs = {**bound, **bound.get("kwargs", {})}
        self._calls = {}
        self._state = "running"
        self._with_grad = torch.is_grad_enabled()

    def _end(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._state = "done"

    def _record(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]
    ) -> None:
        # Gradient checkpointing calls a layer again in the backward pass.
        if self._state != "running":
            return
        refused = _refusal(key, options)
        if self._with_grad and not torch.is_grad_enabled():
            refused = "gradient checkpointing with use_reentrant=True (False would do)"
        if module in self._calls:
            refused = "a layer that attends twice in a pass"
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", False) if causal is None else causal
        self._calls[module] = AttentionCall(
            query,
            key,
            mask,
            options.get("scaling"),
            bool(causal) and self._kinds[module] != "cross",
            refused,
        )

    def _tap(self, kind: str) -> AttentionTap | None:
        modules = [module for module in self._order if self._kinds[module] == kind]
        if not modules:
            return None
        if any(hasattr(module, _POSITION_BIAS) for module in modules):
            raise InputError(f"taps.{kind}: cannot serve a position bias; {_INSTEAD}")
        if self._state == "new":
            raise InputError(f"taps.{kind}: no forward pass of the model within attention_taps yet")
        if any(module not in self._calls for module in modules):
            raise InputError(
                f"taps.{kind}: cannot serve layers that did not call Transformers' "
                "AttentionInterface in the last pass (layerdrop skips some: expected 0); "
                f"{_INSTEAD}"
            )
        calls = [self._calls[module] for module in modules]
        query_lengths, key_lengths = self._lengths(kind)
        if refused := shared_refusal(calls, query_lengths, key_lengths):
            raise InputError(f"taps.{kind}: cannot serve {refused}; {_INSTEAD}")
        return AttentionTap(
            query=[call.query for call in calls],
            key=[call.key for call in calls],
            scale=calls[0].scale,
            causal=calls[0].causal,
            query_lengths=query_lengths,
            key_lengths=key_lengths,
        )

    def _lengths(self, kind: str) -> tuple[Tensor | None, Tensor | None]:
        """Lengths of the queries and the keys of one kind."""
        self._refuse_packing()
        whole = "encoder" in self._kinds.values() and "decoder" in self._kinds.values()
        source = lengths_of("attention_mask", self._inputs.get("attention_mask"), _INSTEAD)
        target = source
        if whole:
            mask = self._inputs.get("decoder_attention_mask")
            labels = self._inputs.get("labels")
            if mask is None and labels is not None:
                mask = labels != -100
            target = lengths_of("decoder_attention_mask", mask, _INSTEAD)
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


def _refusal(key: Tensor, options: dict[str, Any]) -> str | None:
    """Why a call with these options cannot be served."""
    for option, what in _OPTIONS.items():
        if options.get(option) is not None:
            return what
    window = options.get("sliding_window")
    if window is not None and window < key.shape[2]:
        return "a sliding window"
    return None


_originals: dict[str, Callable[..., Any] | None] = {}
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


@functools.cache  # compiled layers know it by identity
def _tapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def tapped(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        taps = getattr(module, _TAP, None)
        if taps is not None:
            taps._record(module, query, key, attention_mask, options)
        return function(module, query, key, value, attention_mask, *arguments, **options)

    # What is recorded is for those outside of the compiled layer.
    outside: Callable[..., Any] = torch.compiler.disable(tapped, recursive=False)
    return outside


def _own_eager(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    own = sys.modules[own_class(module).__module__]
    return own.eager_attention_forward(module, *arguments, **options)
