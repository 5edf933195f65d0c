"""A small nn.Transformer, what it reads, and the maps of its taps."""

import math

import torch
from torch import nn

WIDTH, HEADS, TS, TT = 16, 4, 7, 5
LENGTHS = torch.tensor([7, 4, 6])


def transformer(layers=2, width=WIDTH, **settings):
    torch.manual_seed(layers)
    return nn.Transformer(
        width, HEADS, layers, layers, 24, dropout=0.0, batch_first=True, **settings
    )


def sequences(width=WIDTH):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(3, time, width, generator=generator) for time in (TS, TT))


def masks():
    padding = torch.arange(TS) >= LENGTHS[:, None]
    return {
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(TT),
        "tgt_is_causal": True,
    }


def maps_of(tap):
    """(B, maps, Tq, Tk): what softmax makes of the tap."""
    found = []
    for query, key in zip(tap.query, tap.key, strict=True):
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = query @ key.mT * (tap.scale or 1 / math.sqrt(query.shape[-1]))
        if tap.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        if tap.key_lengths is not None:
            hidden = torch.arange(scores.shape[-1]) >= tap.key_lengths[:, None]
            scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        found.append(scores.softmax(-1))
    return torch.cat(found, 1)


def weights_of(module):
    """A list of the maps that an nn.MultiheadAttention itself tells."""
    told = []

    def ask(module, arguments, keywords):
        return arguments, {**keywords, "need_weights": True, "average_attn_weights": False}

    module.register_forward_pre_hook(ask, with_kwargs=True)
    module.register_forward_hook(lambda module, arguments, output: told.append(output[1]))
    return told
