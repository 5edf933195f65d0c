"""The Transformer against torch.nn.Transformer and against the published position formulas."""

import copy
import math

import pytest
import torch
from torch import nn

from fastkd.config.tree import ModelConfig
from fastkd.errors import InputError
from fastkd.nn import Transformer, count_parameters
from fastkd.nn.layout import ROWS

PAD = 0
SIZES = {"encoder_layers": 2, "decoder_layers": 3, "width": 16, "ffn": 24, "heads": 4}


def build(norm="pre", source_size=19, target_size=19, dtype=torch.float64, seed=1, **options):
    torch.manual_seed(seed)
    config = ModelConfig(**SIZES, norm=norm, max_positions=32, **options)
    model = Transformer(config, source_size, target_size, PAD).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # no parameter may be at a neutral value
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(source_lengths=(5, 7, 1), target_lengths=(6, 2, 4), size=19):
    generator = torch.Generator().manual_seed(3)

    def ids(lengths):
        made = torch.randint(1, size, (len(lengths), max(lengths)), generator=generator)
        for row, length in zip(made, lengths, strict=True):
            row[length:] = PAD
        return made

    return (
        ids(source_lengths),
        torch.tensor(source_lengths),
        ids(target_lengths),
        torch.tensor(target_lengths),
    )


def torch_model(model):
    """torch.nn.Transformer with the same weights."""
    config = model.config
    other = nn.Transformer(
        config.width,
        config.heads,
        config.encoder_layers,
        config.decoder_layers,
        config.ffn,
        dropout=0.0,
        batch_first=True,
        norm_first=config.norm == "pre",
    ).to(model.output_weight.dtype)

    def copy_attention(to, inputs, output):
        to.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in inputs]))
        to.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in inputs]))
        to.out_proj = copy.deepcopy(output)

    for to, of in zip(other.encoder.layers, model.encoder.layers, strict=True):
        copy_attention(to.self_attn, [of.attention.qkv], of.attention.output)
        to.linear1, to.linear2 = of.feed_forward.expand, of.feed_forward.contract
        to.norm1, to.norm2 = of.attention_norm, of.feed_forward_norm
    for to, of in zip(other.decoder.layers, model.decoder.layers, strict=True):
        copy_attention(to.self_attn, [of.self_attention.qkv], of.self_attention.output)
        cross = of.cross_attention
        copy_attention(to.multihead_attn, [cross.query, cross.key_value], cross.output)
        to.linear1, to.linear2 = of.feed_forward.expand, of.feed_forward.contract
        to.norm1, to.norm2 = of.self_attention_norm, of.cross_attention_norm
        to.norm3 = of.feed_forward_norm
    other.encoder.norm = model.encoder.norm
    other.decoder.norm = model.decoder.norm
    return other.eval()


def positions(count, width, norm):
    """Marian: PE(p, j) of Vaswani et al. in halves; M2M100: from pad + 1, the last 1/10000."""
    table = torch.zeros(count, width, dtype=torch.float64)
    half = width // 2
    for row in range(count):
        for j in range(half):
            if norm == "pre":
                angle = (row + PAD + 1) * 10000 ** (-j / (half - 1))
            else:
                angle = row / 10000 ** (2 * j / width)
            table[row, j] = math.sin(angle)
            table[row, half + j] = math.cos(angle)
    return table


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("lengths", [((5, 7, 1), (6, 2, 4)), ((4, 4), (3, 3))])
def test_equals_torch_transformer(norm, lengths):
    model = build(norm).eval()
    source, source_lengths, target, target_lengths = batch(*lengths)
    table = positions(32, 16, norm)

    def embed(tokens):
        return model.source_embedding.weight[tokens] * 4.0 + table[: tokens.shape[1]]

    pads = torch.arange(source.shape[1]) >= source_lengths[:, None]
    oracle = torch_model(model)
    future = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64)
    memory = oracle.encoder(embed(source), src_key_padding_mask=pads)
    expected = oracle.decoder(
        embed(target), memory, tgt_mask=future, memory_key_padding_mask=pads, tgt_is_causal=True
    )
    output = model(source, source_lengths, target, target_lengths)
    for b in range(len(source)):
        s, t = source_lengths[b], target_lengths[b]
        # the position table is float32, like that of the published models
        torch.testing.assert_close(output.encoder_hidden[b, :s], memory[b, :s], atol=2e-6, rtol=0)
        torch.testing.assert_close(output.hidden[b, :t], expected[b, :t], atol=2e-6, rtol=0)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_and_packing_change_nothing(norm, monkeypatch):
    from fastkd.nn import transformer

    model = build(norm)
    model.eval()
    source, source_lengths, target, target_lengths = batch()

    def run():
        model.zero_grad()
        output = model(source, source_lengths, target, target_lengths)
        real = torch.arange(target.shape[1]) < target_lengths[:, None]
        hidden = output.hidden[real]
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        return hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    packed = run()
    plain = transformer.Layout
    monkeypatch.setattr(transformer, "Layout", lambda *args: plain(*args, packed=False))
    torch.testing.assert_close(run(), packed, atol=1e-12, rtol=1e-10)
    alone = torch.cat(
        [
            model(
                source[b : b + 1, :s], torch.tensor([s]), target[b : b + 1, :t], torch.tensor([t])
            )
            .hidden.squeeze(0)
            .detach()
            for b, (s, t) in enumerate(zip(source_lengths, target_lengths, strict=True))
        ]
    )
    torch.testing.assert_close(alone, packed[0], atol=1e-12, rtol=1e-10)


def test_rows_are_the_tokens_of_hidden_and_spare_ones():
    model = build().eval()
    source, source_lengths, target, target_lengths = batch()
    output = model(source, source_lengths, target, target_lengths)
    tokens = int(target_lengths.sum())
    rows = output.layout.rows(target)
    assert output.rows.shape[0] == rows.shape[0] == -(-tokens // ROWS) * ROWS
    assert torch.equal(rows[:tokens], target[target != PAD])
    assert (rows[tokens:] == PAD).all()
    assert torch.equal(output.rows[:tokens], output.hidden[target != PAD])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_taps_reproduce_the_attention(norm):
    """softmax(q kᵀ/√D) v of the tapped layer is what the layer mixed; gradients reach it."""
    model = build(norm)
    model.eval()
    source, source_lengths, target, target_lengths = batch()
    mixed = {}

    def record(name):
        def hook(module, args):
            mixed.setdefault(name, []).append(args[0])

        return hook

    for layer in model.encoder.layers:
        layer.attention.output.register_forward_pre_hook(record("encoder"))
    for layer in model.decoder.layers:
        layer.self_attention.output.register_forward_pre_hook(record("decoder"))
        layer.cross_attention.output.register_forward_pre_hook(record("cross"))
    values = {"encoder": [], "decoder": [], "cross": []}
    for layer in model.encoder.layers:
        layer.attention.qkv.register_forward_hook(
            lambda module, args, out: values["encoder"].append(out[:, 32:])
        )
    for layer in model.decoder.layers:
        layer.self_attention.qkv.register_forward_hook(
            lambda module, args, out: values["decoder"].append(out[:, 32:])
        )
        layer.cross_attention.key_value.register_forward_hook(
            lambda module, args, out: values["cross"].append(out[:, 16:])
        )
    output = model(source, source_lengths, target, target_lengths, taps=True)
    lengths = {
        "encoder": (source_lengths, source_lengths),
        "decoder": (target_lengths, target_lengths),
        "cross": (target_lengths, source_lengths),
    }
    for kind, (queries, keys) in lengths.items():
        tap = getattr(output.taps, kind)
        assert tap.causal is (kind == "decoder")
        assert tap.query_lengths.tolist() == queries.tolist()
        assert tap.key_lengths.tolist() == keys.tolist()
        assert tap.maps == 4 * len(tap.query) == 4 * len(mixed[kind])
        first_query = torch.cat([torch.zeros(1, dtype=torch.int64), queries.cumsum(0)])
        first_key = torch.cat([torch.zeros(1, dtype=torch.int64), keys.cumsum(0)])
        for layer, (query, key) in enumerate(zip(tap.query, tap.key, strict=True)):
            assert query.requires_grad and key.requires_grad
            for b, (q, k) in enumerate(zip(queries.tolist(), keys.tolist(), strict=True)):
                scores = query[b, :, :q] @ key[b, :, :k].mT / 2.0
                if tap.causal:
                    scores = scores.masked_fill(torch.ones(q, k).triu(1).bool(), -torch.inf)
                value = values[kind][layer][first_key[b] : first_key[b] + k]
                value = value.unflatten(1, (4, 4)).transpose(0, 1)  # (heads, k, head size)
                expected = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
                actual = mixed[kind][layer][first_query[b] : first_query[b] + q]
                torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)
    loss = sum(q.square().sum() for q in output.taps.encoder.query)
    loss.backward()
    assert model.encoder.layers[1].attention.qkv.weight.grad.abs().sum() > 0


def test_taps_leave_out_lengths_without_padding():
    model = build().eval()
    output = model(*batch((4, 4), (3, 3)), taps=True)
    assert output.taps.cross.key_lengths is None
    assert output.taps.decoder.query_lengths is None
    assert model(*batch()).taps is None


@pytest.mark.parametrize("causal", [True, False])
def test_causality(causal):
    """Whether a later target token reaches an earlier state."""
    model = build().eval()
    source, source_lengths, target, target_lengths = batch()
    encoded = model.encode(source, source_lengths)
    changed = target.clone()
    changed[0, 5] = target[0, 5] % 18 + 1
    before = model.decode(target, encoded, target_lengths, causal=causal).hidden
    after = model.decode(changed, encoded, target_lengths, causal=causal).hidden
    difference = (after - before).abs().amax(-1)
    assert (difference[0, :5] > 1e-9).all() != causal
    assert difference[1:].max() == 0
    assert difference[0, 5] > 1e-9


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("beam", [1, 3])
def test_steps_equal_decode(norm, beam):
    """Cached steps under changes of place equal the uncached decoder on each hypothesis' tokens."""
    model = build(norm, share_embeddings=False, target_size=11).eval()
    source, source_lengths, *_ = batch()
    encoded = model.encode(source, source_lengths)
    state = model.start(encoded, beam)
    generator = torch.Generator().manual_seed(5)
    histories = torch.empty(3, beam, 0, dtype=torch.int64)
    sentences = torch.arange(3)
    for length in range(1, 12):
        tokens = torch.randint(0, 11, histories.shape[:2], generator=generator)
        histories = torch.cat([histories, tokens[:, :, None]], dim=2)
        hidden = model.step(tokens.flatten(), state).unflatten(0, (-1, beam))
        for position, sentence in enumerate(sentences.tolist()):
            whole = model.decode(
                histories[position],
                model.encode(
                    source[sentence, : source_lengths[sentence]].expand(beam, -1),
                    source_lengths[sentence].expand(beam),
                ),
                torch.full((beam,), length),
            )
            torch.testing.assert_close(
                hidden[position], whole.hidden[:, -1], atol=1e-12, rtol=1e-10
            )
        parents = torch.randint(0, beam, histories.shape[:2], generator=generator)
        histories = histories.gather(1, parents[:, :, None].expand_as(histories))
        state.reorder((parents + beam * torch.arange(len(parents))[:, None]).flatten())
        if length == 5:
            keep = torch.tensor([0, 2])
            state.keep(keep)
            histories, sentences = histories[keep], sentences[keep]


def test_dropout_is_active_in_training_only():
    model = build(dropout=0.5, dtype=torch.float32)
    first, second = (model(*batch()).hidden for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(*batch()).hidden for _ in range(2))
    assert torch.equal(first, second)


def test_pad_embedding_starts_at_zero_and_projections_are_tied():
    config = ModelConfig(**SIZES)
    model = Transformer(config, 19, 19, pad_id=3)
    assert not model.source_embedding.weight[3].any()
    assert model.output_weight is model.source_embedding.weight
    assert model.output_bias is None
    names = set(model.state_dict())
    assert "source_embedding.weight" in names
    assert not names & {"target_embedding.weight", "output_projection", "output_bias"}


def test_separate_embeddings_and_output():
    model = build(
        share_embeddings=False, tie_output=False, output_bias=True, source_size=19, target_size=23
    ).eval()
    names = set(model.state_dict())
    assert {"target_embedding.weight", "output_projection", "output_bias"} <= names
    assert model.output_weight.shape == (23, 16)
    hidden = model(*batch()).hidden
    expected = hidden @ model.output_projection.mT + model.output_bias
    torch.testing.assert_close(model.logits(hidden), expected, atol=1e-12, rtol=1e-10)


def test_count_parameters_counts_shared_once():
    d, f = 16, 24
    attention, norm = 4 * d * d + 4 * d, 2 * d
    feed = 2 * d * f + d + f
    layers = 2 * (attention + feed + 2 * norm) + 3 * (2 * attention + feed + 3 * norm)
    assert count_parameters(build("post")) == 19 * d + layers
    model = build("pre", tie_output=False)
    assert count_parameters(model) == 2 * 19 * d + layers + 2 * norm
    model.output_projection.requires_grad_(False)
    assert count_parameters(model, trainable=True) == 19 * d + layers + 2 * norm


def test_state_dict_restores_the_model():
    model, other = build(seed=1).eval(), build(seed=2).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(*batch()).hidden, other(*batch()).hidden)


@pytest.mark.parametrize(
    ("options", "sizes", "word"),
    [
        ({"heads": 3}, (19, 19), "model.heads"),
        ({"width": 15, "heads": 3}, (19, 19), "model.width"),
        ({}, (19, 20), "model.share_embeddings"),
    ],
)
def test_refuses_what_does_not_fit(options, sizes, word):
    with pytest.raises(InputError, match=word):
        Transformer(ModelConfig(**SIZES | options), *sizes, PAD)


def test_refuses_impossible_lengths():
    model = build()
    source, _, target, target_lengths = batch()
    for wrong in ([5, 0, 1], [5, 8, 1]):
        with pytest.raises(ValueError, match="lengths must be from 1 to 7"):
            model(source, torch.tensor(wrong), target, target_lengths)
    with pytest.raises(ValueError, match="max_positions is 32"):
        model.encode(torch.ones(1, 33, dtype=torch.int64), torch.tensor([33]))


def test_autocast_stays_near_float32():
    model = build(dtype=torch.float32).eval()
    exact = copy.deepcopy(model).double()(*batch()).hidden
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(*batch()).hidden
    plain = copy.deepcopy(model).bfloat16()(*batch()).hidden
    real = (batch()[2] != PAD)[..., None]

    def error(hidden):
        return ((hidden.double() - exact) * real).norm()

    assert 0 < error(mixed) <= error(plain)
