"""The masked model: what it sees, what it never predicts, and its length predictor."""

import dataclasses

import pytest
import torch

from fastkd.config.tree import CMLMConfig, ModelConfig
from fastkd.errors import InputError
from fastkd.nn.cmlm import CMLM
from fastkd.nn.transformer import Transformer

PAD, BOS, EOS, MASK, SIZE = 0, 2, 3, 4, 19
CONFIG = ModelConfig(
    kind="cmlm", encoder_layers=2, decoder_layers=2, width=16, ffn=24, heads=4, dropout=0.0
)
SOURCE = torch.tensor([[7, 8, 9, EOS], [6, EOS, PAD, PAD]])
SOURCE_LENGTHS = torch.tensor([4, 2])
TARGET = torch.tensor([[MASK, 9, MASK, 12, EOS], [5, MASK, EOS, PAD, PAD]])
TARGET_LENGTHS = torch.tensor([5, 3])


def build(seed=1, **options):
    torch.manual_seed(seed)
    config = dataclasses.replace(CONFIG, cmlm=CMLMConfig(**options))
    model = CMLM(config, SIZE, SIZE, pad_id=PAD, bos_id=BOS, eos_id=EOS, mask_id=MASK).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def states(model, target=TARGET, taps=False):
    return model(SOURCE, SOURCE_LENGTHS, target, TARGET_LENGTHS, taps)


@pytest.mark.parametrize("causal_attention", [False, True])
def test_every_position_sees_the_whole_target(causal_attention):
    model = build(causal_attention=causal_attention)
    changed = TARGET.clone()
    changed[0, 3] = 13
    difference = (states(model).hidden - states(model, changed).hidden).abs().amax(-1)
    assert (difference[0] > 1e-6).all()
    assert (difference[1] == 0).all()


def test_without_causal_attention_it_is_the_transformer_without_causal_mask():
    model = build()
    plain = Transformer(dataclasses.replace(CONFIG, kind="transformer"), SIZE, SIZE, PAD).double()
    ours = dict(model.named_parameters())
    assert ours.keys() - dict(plain.named_parameters()).keys() == {"length.weight"}
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(ours[name])
    encoded = plain.eval().encode(SOURCE, SOURCE_LENGTHS)
    expected = plain.decode(TARGET, encoded, TARGET_LENGTHS, causal=False)
    assert torch.equal(states(model).rows, expected.rows)


def test_causal_attention_tells_neighbouring_masks_apart():
    """Without positions, masks have equal states unless some see less of the target."""
    target = torch.tensor([[9, MASK, MASK, MASK, EOS], [MASK, MASK, EOS, PAD, PAD]])
    for causal_attention in (False, True):
        model = build(causal_attention=causal_attention)
        model.positions.zero_()
        rows = states(model, target).hidden[0, 1:4]
        apart = (rows[1:] - rows[:-1]).abs().amax(-1)
        assert (apart > 1e-4).all() if causal_attention else (apart < 1e-12).all()


def test_taps_are_of_the_full_attention_in_every_layer():
    for causal_attention in (False, True):
        taps = states(build(causal_attention=causal_attention), taps=True).taps
        assert taps.decoder.maps == taps.cross.maps == 8
        assert not taps.decoder.causal


def test_special_pieces_are_never_predicted():
    model = build()
    with torch.no_grad():
        for special in (PAD, BOS, EOS, MASK):
            model.output_weight[special] = 100 * states(model).hidden[0, 0]
    rows = states(model).rows
    banned = torch.zeros(SIZE, dtype=torch.bool).index_fill_(
        0, torch.tensor([PAD, BOS, EOS, MASK]), True
    )
    assert torch.equal(model.logits(rows).isinf().any(0), banned)
    ids, scores = model.best(rows)
    expected = (rows @ model.output_weight.mT)[:, ~banned].log_softmax(-1).max(-1)
    assert torch.equal(ids, torch.arange(SIZE)[~banned][expected.indices])
    torch.testing.assert_close(scores, expected.values)


def test_best_does_not_depend_on_how_rows_are_cut(monkeypatch):
    model = build()
    rows = states(model).rows
    whole = model.best(rows)
    monkeypatch.setattr("fastkd.nn.cmlm._ROWS_AT_ONCE", 3)
    ids, scores = model.best(rows)
    assert torch.equal(ids, whole[0])
    torch.testing.assert_close(scores, whole[1])
    assert model.best(rows[:0])[0].shape == (0,)


def test_constant_bias_is_no_weight_of_the_model():
    model = build()
    names = [name for name, _ in model.named_parameters()]
    assert "output_bias" not in names and "output_bias" not in model.state_dict()
    with pytest.raises(InputError, match=r"model\.output_bias"):
        CMLM(
            dataclasses.replace(CONFIG, output_bias=True),
            SIZE,
            SIZE,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            mask_id=MASK,
        )


def test_length_predictor_averages_real_states_only():
    model = build(length_classes=10)
    encoded = model.encode(SOURCE, SOURCE_LENGTHS)
    mean = torch.stack([encoded.hidden[0].mean(0), encoded.hidden[1, :2].mean(0)])
    # the mean is taken in float32
    torch.testing.assert_close(
        model.length(encoded), mean @ model.length.weight.mT, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "classes"), [("absolute", [4, 2, 0, 9]), ("offset", [6, 3, 0, 9])]
)
def test_length_classes(kind, classes):
    """10 classes: offsets from −5 to 4; what lies outside goes to the ends."""
    predictor = build(length_classes=10, length=kind).length
    target_lengths = torch.tensor([4, 2, 0, 99])
    source_lengths = torch.tensor([3, 4, 20, 20])
    assert predictor.class_of(target_lengths, source_lengths).tolist() == classes


@pytest.mark.parametrize("kind", ["absolute", "offset"])
def test_predicted_length_inverts_the_class(kind, monkeypatch):
    model = build(length_classes=12, length=kind)
    encoded = model.encode(SOURCE, SOURCE_LENGTHS)  # source pieces: 3 and 1
    wanted = torch.tensor([5, 4])
    classes = model.length.class_of(wanted, SOURCE_LENGTHS - 1)
    logits = torch.nn.functional.one_hot(classes, 12).double()
    monkeypatch.setattr(type(model.length), "forward", lambda self, encoded: logits)
    assert model.length.predict(encoded).tolist() == wanted.tolist()


def test_repeated_sentences_have_the_same_states():
    model = build()
    encoded = model.encode(SOURCE, SOURCE_LENGTHS).repeat(3)
    assert encoded.layout.lengths.tolist() == [4, 4, 4, 2, 2, 2]
    lengths = TARGET_LENGTHS.repeat_interleave(3)
    thrice = model.decode(TARGET.repeat_interleave(3, 0), encoded, lengths).hidden
    torch.testing.assert_close(thrice, states(model).hidden.repeat_interleave(3, 0))


def test_banned_pieces_are_passed_over_and_keep_their_probability():
    model = build()
    rows = states(model).rows
    first, _ = model.best(rows)
    with torch.no_grad():
        log_p = model.logits(rows).log_softmax(-1)
    banned = tuple(first.unique().tolist()[:2])
    ids, scores = model.best(rows, banned)
    log_p[:, list(banned)] = -torch.inf
    assert not set(ids.tolist()) & set(banned)
    assert torch.equal(ids, log_p.argmax(-1))
    torch.testing.assert_close(scores, log_p.max(-1).values)
