"""Mask-predict against its definition in plain loops, sentence by sentence."""

import dataclasses

import pytest
import torch

from fastkd.config.tree import CMLMConfig, ModelConfig
from fastkd.decode.mask_predict import fill_in, lowest, mask_predict
from fastkd.nn.cmlm import CMLM

PAD, BOS, EOS, MASK, SIZE = 0, 2, 3, 4, 12
CONFIG = ModelConfig(
    kind="cmlm", encoder_layers=1, decoder_layers=1, width=16, ffn=24, heads=2, dropout=0.0
)
SOURCE = torch.tensor([[7, 8, 9, 5, EOS], [6, EOS, 0, 0, 0], [9, 9, 5, EOS, 0]])
SOURCE_LENGTHS = torch.tensor([5, 2, 4])
LIMITS = torch.tensor([9, 9, 9])


@pytest.fixture
def model():
    torch.manual_seed(3)
    config = dataclasses.replace(CONFIG, cmlm=CMLMConfig(length_classes=16))
    model = CMLM(config, SIZE, SIZE, pad_id=PAD, bos_id=BOS, eos_id=EOS, mask_id=MASK).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@torch.no_grad()
def probabilities(model, sentence, tokens):
    """log p of every piece at every place of one target, given its source ids."""
    target = torch.tensor([[*tokens, EOS]])
    lengths = torch.tensor([len(sentence)]), torch.tensor([target.shape[1]])
    output = model(torch.tensor([sentence]), lengths[0], target, lengths[1])
    return model.logits(output.hidden)[0, :-1].log_softmax(-1)


def literal(model, sentence, length, passes, reconsider):
    tokens, scores = [MASK] * length, [0.0] * length
    for s in range(passes):
        log_p = probabilities(model, sentence, tokens)
        for i in range(length):
            if tokens[i] == MASK or reconsider:
                tokens[i] = int(log_p[i].argmax())
                scores[i] = float(log_p[i].max())
        order = sorted(range(length), key=lambda i: (scores[i], i))
        for i in order[: length * (passes - s - 1) // passes]:
            tokens[i] = MASK
    return tokens, scores


@pytest.mark.parametrize("reconsider", [False, True])
@pytest.mark.parametrize("passes", [1, 2, 3, 5, 8])
def test_passes(model, passes, reconsider):
    lengths = torch.tensor([6, 1, 5])
    encoded = model.encode(SOURCE, SOURCE_LENGTHS)
    tokens, scores = fill_in(model, encoded, lengths, passes, reconsider)
    for b, length in enumerate(lengths.tolist()):
        sentence = SOURCE[b, : SOURCE_LENGTHS[b]].tolist()
        expected, log_probs = literal(model, sentence, length, passes, reconsider)
        assert tokens[b].tolist() == [*expected, EOS, *[PAD] * (6 - length)]
        torch.testing.assert_close(scores[b, :length].tolist(), log_probs)
        assert (scores[b, length:] == 0).all()


@pytest.mark.parametrize(
    ("length", "passes", "expected"),
    [
        (5, 5, [4, 3, 2, 1]),  # in floating point (1 - 4/5) · 5 falls below 1
        (4, 4, [3, 2, 1]),
        (7, 3, [4, 2]),
        (2, 4, [1, 1, 0]),
        (1, 3, [0, 0]),
    ],
)
def test_counts_that_are_masked_again(model, monkeypatch, length, passes, expected):
    seen = []
    decode = CMLM.decode

    def spy(self, decoder_input, *args, **kwargs):
        seen.append(int((decoder_input == MASK).sum()))
        return decode(self, decoder_input, *args, **kwargs)

    monkeypatch.setattr(CMLM, "decode", spy)
    encoded = model.encode(SOURCE[:1], SOURCE_LENGTHS[:1])
    fill_in(model, encoded, torch.tensor([length]), passes, reconsider=True)
    assert seen == [length, *expected]
    # Without reconsidering, passes that have nothing to do are left out.
    seen.clear()
    fill_in(model, encoded, torch.tensor([length]), passes)
    assert seen == [length, *[count for count in expected if count]]


@pytest.mark.parametrize("window", [0, 1, 3])
def test_the_best_mean_of_the_lengths_tried_wins(model, window):
    found = mask_predict(
        model, SOURCE, SOURCE_LENGTHS, passes=3, max_lengths=LIMITS, length_window=window
    )
    predicted = model.length.predict(model.encode(SOURCE, SOURCE_LENGTHS))
    for b in range(len(SOURCE)):
        sentence = SOURCE[b, : SOURCE_LENGTHS[b]].tolist()
        tried = []
        for offset in range(-window, window + 1):
            length = min(max(int(predicted[b]) + offset, 1), 9)
            tokens, scores = literal(model, sentence, length, 3, False)
            tried.append((sum(scores) / length, tokens))
        best = max(tried, key=lambda pair: pair[0])
        assert found.tokens[b] == best[1]
        assert found.scores[b] == pytest.approx(best[0])


def test_other_sentences_change_nothing(model):
    together = mask_predict(
        model, SOURCE, SOURCE_LENGTHS, passes=4, max_lengths=LIMITS, length_window=2
    )
    for b in range(len(SOURCE)):
        length = SOURCE_LENGTHS[b : b + 1]
        alone = mask_predict(
            model,
            SOURCE[b : b + 1, :length],
            length,
            passes=4,
            max_lengths=LIMITS[:1],
            length_window=2,
        )
        assert alone.tokens[0] == together.tokens[b]


def test_lengths_stay_within_their_limits(model):
    limits = torch.tensor([1, 2, 3])
    found = mask_predict(
        model, SOURCE, SOURCE_LENGTHS, passes=2, max_lengths=limits, length_window=5
    )
    assert all(
        1 <= len(row) <= limit for row, limit in zip(found.tokens, limits.tolist(), strict=True)
    )


def test_adjacent_duplicates_are_removed(model, monkeypatch):
    pieces = iter([torch.tensor([6, 6, 7, 6, 6])])
    monkeypatch.setattr(CMLM, "best", lambda self, rows, banned: (next(pieces), torch.zeros(5)))
    monkeypatch.setattr(type(model.length), "predict", lambda self, encoded: torch.full((1,), 5))
    found = mask_predict(
        model,
        SOURCE[:1],
        SOURCE_LENGTHS[:1],
        passes=1,
        max_lengths=LIMITS[:1],
        remove_duplicates=True,
    )
    assert found.tokens == [[6, 7, 6]]


def test_lowest():
    scores = torch.tensor([[-1.0, -3.0, -2.0, -9.0], [-1.0, -1.0, -1.0, -1.0]])
    among = torch.tensor([[True, True, True, False], [True, True, True, True]])
    masked = lowest(scores, among, torch.tensor([2, 3]))
    assert masked.tolist() == [[False, True, True, False], [True, True, True, False]]
    assert not lowest(scores, among, torch.tensor([0, 0])).any()
    assert torch.equal(lowest(scores, among, torch.tensor([9, 9])), among)
