"""Our parameters' names and the ones that Transformers' Marian and M2M100 layouts give them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.config.tree import ModelConfig
from fastkd.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One of our parameters: their tensors, one after another along its rows."""

    ours: str
    theirs: tuple[str, ...]


def entries(config: ModelConfig) -> Iterator[Entry]:
    """All parameters of a model of this configuration."""
    if config.share_embeddings:
        yield Entry("source_embedding.weight", ("model.shared.weight",))
    else:
        yield Entry("source_embedding.weight", ("model.encoder.embed_tokens.weight",))
        yield Entry("target_embedding.weight", ("model.decoder.embed_tokens.weight",))
    for layer in range(config.encoder_layers):
        ours, theirs = f"encoder.layers.{layer}", f"model.encoder.layers.{layer}"
        yield from _self_attention(f"{ours}.attention", f"{theirs}.self_attn")
        yield from _feed_forward(ours, theirs)
    for layer in range(config.decoder_layers):
        ours, theirs = f"decoder.layers.{layer}", f"model.decoder.layers.{layer}"
        yield from _self_attention(f"{ours}.self_attention", f"{theirs}.self_attn")
        cross, other = f"{ours}.cross_attention", f"{theirs}.encoder_attn"
        yield from _both(f"{cross}.query", f"{other}.q_proj")
        yield from _both(f"{cross}.key_value", f"{other}.k_proj", f"{other}.v_proj")
        yield from _both(f"{cross}.output", f"{other}.out_proj")
        yield from _both(f"{cross}_norm", f"{other}_layer_norm")
        yield from _feed_forward(ours, theirs)
    if config.norm == "pre":
        for side in ("encoder", "decoder"):
            yield from _both(f"{side}.norm", f"model.{side}.layer_norm")
    if config.output_bias:
        yield Entry("output_bias", ("final_logits_bias",))


def to_transformers(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, from ours."""
    renamed: dict[str, Tensor] = {}
    for entry in entries(config):
        parts = tensors[entry.ours].chunk(len(entry.theirs))
        renamed |= {name: part.contiguous() for name, part in zip(entry.theirs, parts, strict=True)}
    if config.output_bias:
        renamed["final_logits_bias"] = renamed["final_logits_bias"][None]
    return renamed


def from_transformers(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, from theirs."""
    try:
        ours = {
            entry.ours: torch.cat([tensors[name] for name in entry.theirs])
            for entry in entries(config)
        }
    except KeyError as missing:
        raise InputError(f"the checkpoint has no tensor {missing.args[0]}") from None
    if config.output_bias:
        ours["output_bias"] = ours["output_bias"].flatten()
    return ours


def _self_attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _both(f"{ours}.qkv", *(f"{theirs}.{part}_proj" for part in "qkv"))
    yield from _both(f"{ours}.output", f"{theirs}.out_proj")
    yield from _both(f"{ours}_norm", f"{theirs}_layer_norm")


def _feed_forward(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _both(f"{ours}.feed_forward.expand", f"{theirs}.fc1")
    yield from _both(f"{ours}.feed_forward.contract", f"{theirs}.fc2")
    yield from _both(f"{ours}.feed_forward_norm", f"{theirs}.final_layer_norm")


def _both(ours: str, *theirs: str) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        yield Entry(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs))
