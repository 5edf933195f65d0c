"""Queries and keys of PyTorch's own attention, and of projections by name."""

import pytest
import torch
from torch import nn

import fastkd
from fastkd.taps import Projections, record
from tests.taps.attention import (
    HEADS,
    LENGTHS,
    TS,
    WIDTH,
    maps_of,
    masks,
    sequences,
    transformer,
    weights_of,
)


@pytest.mark.parametrize("training", [True, False])
def test_the_maps_of_a_transformer(training):
    """In evaluation PyTorch would take a path of its own past the layers."""
    model, (source, target) = transformer().train(training), sequences()
    with torch.set_grad_enabled(training):
        expected = model(source, target, **masks())
        with record(model) as taps:
            output = model(source, target, **masks())
    torch.testing.assert_close(output, expected)
    told = {
        "encoder": [weights_of(layer.self_attn) for layer in model.encoder.layers],
        "decoder": [weights_of(layer.self_attn) for layer in model.decoder.layers],
        "cross": [weights_of(layer.multihead_attn) for layer in model.decoder.layers],
    }
    model(source, target, **masks())
    for kind, layers in told.items():
        tap = getattr(taps, kind)
        assert tap.causal == (kind == "decoder") and tap.maps == 2 * HEADS
        torch.testing.assert_close(maps_of(tap), torch.cat([maps for (maps,) in layers], 1))
    assert torch.equal(taps.encoder.query_lengths, LENGTHS)
    assert torch.equal(taps.cross.key_lengths, LENGTHS) and taps.cross.query_lengths is None


def test_a_student_of_another_size_learns_by_it():
    teacher, student = transformer(2).eval(), transformer(1, 8)
    both = [sequences(width) for width in (WIDTH, 8)]
    with record(student) as ours, record(teacher) as theirs:
        student(*both[1], **masks())
        with torch.no_grad():
            teacher(*both[0], **masks())
        align = fastkd.AlignToDistill.from_taps(ours, theirs)
        align(ours, theirs).loss.backward()
    for layer in (student.encoder.layers[0].self_attn, student.decoder.layers[0].multihead_attn):
        query, key, _ = layer.in_proj_weight.grad.chunk(3)
        assert query.any() and key.any()
    assert not layer.in_proj_weight.grad[2 * 8 :].any()  # values of the last layer enter no map


class Own(nn.Module):
    """Attention of one's own, with projections by names of one's own, and as one product."""

    def __init__(self, heads=4, key_heads=2, fused=False, batch_first=True):
        super().__init__()
        self.heads, self.key_heads, self.fused = heads, key_heads, fused
        self.batch_first = batch_first
        size = WIDTH // heads
        self.sizes = [size * n for n in (heads, key_heads, key_heads)]
        self.wq, self.wk, self.wv = (nn.Linear(WIDTH, width) for width in self.sizes)
        self.qkv = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, states):
        if self.fused:
            query, key, value = self.qkv(states).split(self.sizes, -1)
        else:
            query, key, value = self.wq(states), self.wk(states), self.wv(states)
        query, key, value = (
            self.by_sentences(side).unflatten(-1, (heads, -1)).transpose(1, 2)
            for side, heads in ((query, self.heads), (key, self.key_heads), (value, self.key_heads))
        )
        key, value = (s.repeat_interleave(self.heads // self.key_heads, 1) for s in (key, value))
        self.maps = (query @ key.mT * 0.3).softmax(-1)
        return self.by_sentences((self.maps @ value).transpose(1, 2).flatten(2))

    def by_sentences(self, states):
        return states if self.batch_first else states.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_projections_by_name(fused, batch_first):
    torch.manual_seed(0)
    model = nn.Sequential(*(Own(fused=fused, batch_first=batch_first) for _ in range(2)))
    names = ("qkv", "qkv") if fused else ("wq", "wk")
    how = {"heads": 4, "key_heads": 2, "scale": 0.3, "batch_first": batch_first}
    layers = [Projections(*(f"{n}.{name}" for name in names), **how) for n in range(2)]
    states = sequences()[0]
    with record(model, {"encoder": layers}) as taps:
        model(states if batch_first else states.transpose(0, 1))
    torch.testing.assert_close(maps_of(taps.encoder), torch.cat([m.maps for m in model], 1))
    assert taps.encoder.key[0].shape == (3, 2, TS, 4)


def test_checkpointing():
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.attention, self.reentrant = Own(), reentrant

        def forward(self, states):
            return torch.utils.checkpoint.checkpoint(
                self.attention, states, use_reentrant=self.reentrant
            )

    for reentrant in (False, True):
        model = Checkpointed(reentrant)
        layers = {"encoder": [Projections("attention.wq", "attention.wk", 4, 2)]}
        states = sequences()[0].requires_grad_()
        with record(model, layers) as taps:
            output = model(states)
            if reentrant:
                with pytest.raises(fastkd.InputError, match="use_reentrant=True"):
                    _ = taps.encoder
                continue
            before = taps.encoder.query[0]
            output.sum().backward()
            assert taps.encoder.query[0] is before


def self_attention(**settings):
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings)


def called(module, *times, **call):
    states = sequences()[0]
    for _ in range(*times or (1,)):
        module(states, states, states, **call)


LEFT = torch.arange(TS) < 7 - LENGTHS[:, None]
WINDOW = torch.ones(TS, TS).tril().triu(-2) == 0
REFUSED = {
    "left padding": (self_attention(), {"key_padding_mask": LEFT}),
    "a bias of keys": (self_attention(), {"key_padding_mask": torch.rand(3, TS)}),
    "beyond padding at the end and causality": (self_attention(), {"attn_mask": WINDOW}),
    "beyond padding": (self_attention(), {"attn_mask": torch.randn(TS, TS)}),
    "keys that are added": (self_attention(add_zero_attn=True), {}),
    "keys that are added to": (self_attention(add_bias_kv=True), {}),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_queries_and_keys_do_not_determine_is_refused(line):
    module, call = REFUSED[line]
    with record(module, {"encoder": [module]}) as taps:
        called(module, **call)
    with pytest.raises(fastkd.InputError, match=f"{line}.*alignment_loss_from_maps"):
        _ = taps.encoder


def test_masks_for_each_head():
    module = self_attention()
    causal = torch.ones(TS, TS).triu(1).bool().expand(3 * HEADS, TS, TS)
    with record(module, {"decoder": [module]}) as taps:
        called(module, attn_mask=causal)
    assert taps.decoder.causal
    other = causal.clone()
    other[5, 3, 1] = True
    with record(module, {"decoder": [module]}) as taps:
        called(module, attn_mask=other)
    with pytest.raises(fastkd.InputError, match="beyond padding"):
        _ = taps.decoder


def test_what_is_asked_for_wrongly_is_refused():
    model = transformer()
    for modules, line in (
        ({"encodr": []}, "'encodr' is none of encoder, decoder, cross"),
        ({"encoder": ["encoder.layers.9"]}, "has no module 'encoder.layers.9'"),
        ({"encoder": [model.encoder.layers[0]]}, "expected nn.MultiheadAttention or Projections"),
        ({}, "expected attention layers"),
    ):
        with pytest.raises(fastkd.InputError, match=line), record(model, modules):
            pass
    with pytest.raises(fastkd.InputError, match="expected attention layers"), record(nn.ReLU()):
        pass
    with record(model) as taps, pytest.raises(fastkd.InputError, match="no forward pass"):
        _ = taps.encoder
    twice = nn.ModuleList([self_attention()])
    twice.forward = lambda: called(twice[0], 2)
    with record(twice, {"encoder": ["0"]}) as taps:
        twice()
    with pytest.raises(fastkd.InputError, match="attends twice"):
        _ = taps.encoder
    wrong = nn.Sequential(nn.Linear(WIDTH, 10))
    with record(wrong, {"encoder": [Projections("0", "0", 4)]}) as taps:
        wrong(sequences()[0])
    with pytest.raises(fastkd.InputError, match=r"expected \(B, T, 12 · head size\)"):
        _ = taps.encoder


def test_nothing_stays_behind():
    model = transformer()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    enabled = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyError), record(model):
        raise KeyError
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert after == hooks and torch.backends.mha.get_fastpath_enabled() == enabled


def test_differing_layers_are_refused():
    model = nn.Sequential(Own(), Own())
    layers = [Projections(f"{n}.wq", f"{n}.wk", 4, 2, causal=bool(n)) for n in range(2)]
    with record(model, {"encoder": layers}) as taps:
        model(sequences()[0])
    with pytest.raises(fastkd.InputError, match="differ in scale or causality"):
        _ = taps.encoder


PADDING = torch.arange(TS) >= LENGTHS[:, None]


class Detr(nn.Module):
    """Positions are added to queries and keys, which are no tensor in common."""

    def __init__(self):
        super().__init__()
        self.attention = self_attention()

    def forward(self, states, padding):
        self.attention(states + 1, states + 1, states, key_padding_mask=padding)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_padded_queries_with_positions_of_their_own(kind):
    model = Detr()
    with record(model, {kind: [model.attention]}) as taps:
        model(sequences()[0], PADDING)
    tap = getattr(taps, kind)
    assert torch.equal(tap.query_lengths, LENGTHS) and torch.equal(tap.key_lengths, LENGTHS)


@pytest.mark.parametrize("second", [None, PADDING.flip(0)])
def test_layers_that_differ_in_padding_are_refused(second):
    model = nn.ModuleList([Detr(), Detr()])
    model.forward = lambda *padding: [
        m(sequences()[0], p) for m, p in zip(model, padding, strict=True)
    ]
    with record(model, {"encoder": [m.attention for m in model]}) as taps:
        model(PADDING, PADDING.clone())
        assert torch.equal(taps.encoder.key_lengths, LENGTHS)
        model(PADDING, second)
    with pytest.raises(fastkd.InputError, match=r"encoder\[1\]: .*differ in key_padding_mask"):
        _ = taps.encoder


class Crossed(nn.Module):
    """A layer of a decoder, whose own attention may be called or not."""

    def __init__(self, **settings):
        super().__init__()
        self.own, self.cross = self_attention(**settings), self_attention()

    def forward(self, source, states, calls=True, **call):
        if calls:
            self.own(states + 1, states + 1, states, **call)
        self.cross(states, source, source)


@pytest.mark.parametrize(
    ("settings", "calls", "line"),
    [
        ({"add_zero_attn": True}, True, "keys that are added"),
        ({"add_bias_kv": True}, True, "keys that are added"),
        ({}, False, "was not called"),
    ],
)
def test_cross_attention_of_a_decoder_that_cannot_be_read(settings, calls, line):
    model, (source, _) = Crossed(**settings), sequences()
    with record(model, {"decoder": [model.own], "cross": [model.cross]}) as taps:
        model(source, source, calls)
    with pytest.raises(fastkd.InputError, match=rf"decoder\[0\]: .*{line}"):
        _ = taps.cross


def test_cross_attention_has_the_lengths_of_the_decoder():
    """A window of its own attention hides them not."""
    model, (source, _) = Crossed(), sequences()
    with record(model, {"decoder": [model.own], "cross": [model.cross]}) as taps:
        model(source, source, key_padding_mask=PADDING, attn_mask=WINDOW)
    assert torch.equal(taps.cross.query_lengths, LENGTHS) and taps.cross.key_lengths is None
