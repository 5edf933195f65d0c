"""Queries and keys of any module's attention layers, recorded while it computes.

with record(student) as ours, record(teacher) as theirs:     # of nn.Transformer's layers
    student(source, target, ...)
    with torch.no_grad():
        teacher(source, target, ...)
    loss = align(ours, theirs).loss        # align = AlignToDistill.from_taps(ours, theirs)
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fastkd.errors import InputError
from fastkd.taps.layers import Layer, Projections, layer_of
from fastkd.taps.tap import AttentionTap, Tapped

__all__ = ["Projections", "Recorded", "record"]

KINDS = ("encoder", "decoder", "cross")
INSTEAD = "expected alignment_loss_from_maps with the maps themselves"

Given = nn.Module | str | Projections


@contextlib.contextmanager
def record(
    model: nn.Module, modules: Mapping[str, Sequence[Given]] | None = None
) -> Iterator["Recorded"]:
    """Collects queries and keys of the given attention layers in `model`'s last forward pass.

    modules: by kind ("encoder", "decoder", "cross") the layers, first layer first: each an
        `nn.MultiheadAttention` of the model, its name, or `Projections`. None: those of the
        `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer` in it, as `nn.Transformer` has

    The value has `encoder`, `decoder` and `cross`, each an `AttentionTap` or None, like
    `AttentionTaps`. Of `nn.MultiheadAttention` queries and keys are projected once more; scale,
    causality and lengths are those of its call; within, PyTorch's fast path of evaluation is off,
    which gives zeros at padding. Else the outputs of the model do not change. Gradient
    checkpointing must be `use_reentrant=False`.

    Raises InputError for modules of another kind, subclasses with a forward of their own among
    them, and for nested tensors; and, when the taps are read, for attention that queries and keys
    do not determine: left padding, masks beyond padding and causality, added keys; and for layers
    of one kind that differ in scale, causality or padding.
    """
    recorded = Recorded(model, _found(model) if modules is None else modules)
    with contextlib.ExitStack() as stack:
        begin = model.register_forward_pre_hook(recorded._begin, prepend=True)
        stack.callback(begin.remove)
        for layer in recorded._layers:
            for hook in layer.hooks():
                stack.callback(hook.remove)
        stack.callback(model.register_forward_hook(recorded._end).remove)
        # PyTorch's fast path of evaluation passes by the layers' own calls.
        stack.callback(torch.backends.mha.set_fastpath_enabled, _fast_path())
        torch.backends.mha.set_fastpath_enabled(False)
        yield recorded


class Recorded(Tapped):
    """The taps of one model; see `record`."""

    def __init__(self, model: nn.Module, modules: Mapping[str, Sequence[Given]]) -> None:
        if unknown := modules.keys() - set(KINDS):
            raise InputError(f"modules: {unknown.pop()!r} is none of {', '.join(KINDS)}")
        self._kinds = {
            kind: [layer_of(model, f"modules.{kind}[{n}]", given) for n, given in enumerate(found)]
            for kind in KINDS
            if (found := modules.get(kind))
        }
        if not self._kinds:
            raise InputError(
                "modules: expected attention layers of some kind; "
                f"{type(model).__name__} has no layers of nn.Transformer"
            )

    @property
    def _layers(self) -> list[Layer]:
        return [layer for layers in self._kinds.values() for layer in layers]

    def _begin(self, model: nn.Module, arguments: Any) -> None:
        for layer in self._layers:
            layer.begin(torch.is_grad_enabled())

    def _end(self, model: nn.Module, arguments: Any, output: Any) -> None:
        for layer in self._layers:
            layer.end()

    def _tap(self, kind: str) -> AttentionTap | None:
        layers = self._kinds.get(kind)
        if layers is None:
            return None
        taps = []
        for number, layer in enumerate(layers):
            if refused := layer.refused():
                raise InputError(f"taps.{kind}[{number}]: {refused}; {INSTEAD}")
            taps.append(layer.tap(f"taps.{kind}[{number}]", INSTEAD))
        first = taps[0]
        for number, tap in enumerate(taps):
            if (tap.scale, tap.causal) != (first.scale, first.causal):
                raise InputError(
                    f"taps.{kind}[{number}]: cannot serve layers that differ in scale or "
                    f"causality; {INSTEAD}"
                )
            if not _equal(tap.key_lengths, first.key_lengths):
                raise InputError(
                    f"taps.{kind}[{number}]: cannot serve layers that differ in key_padding_mask; "
                    f"{INSTEAD}"
                )
        query_lengths = self._decoder_lengths(first) if kind == "cross" else _own_lengths(first)
        return AttentionTap(
            query=[query for tap in taps for query in tap.query],
            key=[key for tap in taps for key in tap.key],
            scale=first.scale,
            causal=first.causal,
            query_lengths=query_lengths,
            key_lengths=first.key_lengths,
        )

    def _decoder_lengths(self, cross: AttentionTap) -> Tensor | None:
        """Of what attends: it is what the decoder's own layers read."""
        if "decoder" not in self._kinds:
            return cross.query_lengths
        decoder, name = self._kinds["decoder"][0], "taps.decoder[0]"
        if missed := decoder.missed():
            raise InputError(f"{name}: {missed}; {INSTEAD}")
        return _own_lengths(decoder.tap(name, INSTEAD))


def _own_lengths(tap: AttentionTap) -> Tensor | None:
    """Of the queries of self-attention, which may be other tensors than the keys."""
    # As in DETR, where positions are added to queries and keys by each layer.
    as_long = tap.query[0].shape[2] == tap.key[0].shape[2]
    return tap.key_lengths if as_long else tap.query_lengths


def _equal(lengths: Tensor | None, others: Tensor | None) -> bool:
    if lengths is None or others is None:
        return lengths is others
    if any(isinstance(each, FakeTensor) or each.is_meta for each in (lengths, others)):
        return True  # without data nothing can be told
    return torch.equal(lengths, others.to(lengths.device))


def _fast_path() -> bool:
    return bool(torch.backends.mha.get_fastpath_enabled())


def _found(model: nn.Module) -> dict[str, list[nn.Module]]:
    """By kind, the attention of PyTorch's own layers."""
    found: dict[str, list[nn.Module]] = {kind: [] for kind in KINDS}
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            found["encoder"].append(module.self_attn)
        elif isinstance(module, nn.TransformerDecoderLayer):
            found["decoder"].append(module.self_attn)
            found["cross"].append(module.multihead_attn)
    return found
