"""Translation of text, with a model that knows nothing: order, batches, empty and long lines."""

import io

import pytest
import torch

from fastkd.config.tree import DecodingConfig, ModelConfig, TokenizerConfig
from fastkd.data.tokenizer import Tokenizers, train_tokenizer
from fastkd.decode import translate as module
from fastkd.decode.translate import translate, translate_stream
from fastkd.nn import Transformer

TEXT = "sun moon star sea wind rain hill tree leaf bird fish stone river cloud snow fire"
WORDS = TEXT.split()
LINES = [" ".join(WORDS[(i + j) % 16] for j in range(1 + i % 6)) for i in range(20)]


@pytest.fixture(scope="module")
def tokenizers():
    text = [" ".join(WORDS[(i * j) % 16] for j in range(1, 9)) for i in range(200)]
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=35), text, "words")
    return Tokenizers(tokenizer, tokenizer)


@pytest.fixture(scope="module")
def model(tokenizers):
    torch.manual_seed(1)
    config = ModelConfig(
        encoder_layers=1, decoder_layers=1, width=16, ffn=16, heads=2, max_positions=26
    )
    model = Transformer(config, tokenizers.source.size, tokenizers.target.size, 0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


def test_order_does_not_depend_on_batches(model, tokenizers):
    small = translate(model, tokenizers, LINES, DecodingConfig(batch_tokens=16), "cpu")
    large = translate(model, tokenizers, LINES, DecodingConfig(batch_tokens=4096), "cpu")
    alone = [translate(model, tokenizers, [line], DecodingConfig(), "cpu")[0] for line in LINES]
    assert small == large == alone
    assert len(set(alone)) > 5


def test_batches_keep_to_the_tokens(model, tokenizers, monkeypatch):
    seen = []
    search = module.beam_search

    def watch(model, source, lengths, **options):
        seen.append((source.shape, lengths.tolist(), options["max_lengths"].tolist()))
        return search(model, source, lengths, **options)

    monkeypatch.setattr(module, "beam_search", watch)
    config = DecodingConfig(batch_tokens=30, max_length_ratio=1.5, max_length_extra=2)
    translate(model, tokenizers, LINES, config, "cpu")
    assert sum(len(lengths) for _, lengths, _ in seen) == len(LINES)
    flat = [length for _, lengths, _ in seen for length in lengths]
    assert flat == sorted(flat, reverse=True)
    for shape, lengths, limits in seen:
        assert shape == (len(lengths), max(lengths))
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= 30
        assert limits == [min(int(1.5 * length) + 2, 26) for length in lengths]
    assert any(len(lengths) > 3 for _, lengths, _ in seen)


def test_empty_lines_have_empty_translations(model, tokenizers):
    lines = ["", "sun moon", "   ", "sea", ""]
    done = []
    translations = translate(
        model, tokenizers, lines, DecodingConfig(batch_tokens=8), "cpu", progress=done.append
    )
    assert [bool(text) for text in translations] == [False, True, False, True, False]
    assert sum(done) == 5
    assert len(done) > 2
    assert translate(model, tokenizers, [], DecodingConfig(), "cpu") == []


def test_long_lines_are_cut_with_a_warning(model, tokenizers):
    long = " ".join(WORDS * 4)
    pieces = len(tokenizers.source.encode([long])[0])
    warnings = []
    config = DecodingConfig()
    translations = translate(model, tokenizers, ["sun", long], config, "cpu", warn=warnings.append)
    assert warnings == [f"line 2: cut from {pieces} to 25 pieces, as model.max_positions is 26"]
    cut = tokenizers.source.decode([tokenizers.source.encode([long])[0][:25]])
    assert translate(model, tokenizers, cut, config, "cpu") == translations[1:]


def test_stream_yields_in_order_and_reads_no_more_than_its_buffer(model, tokenizers):
    whole = translate(model, tokenizers, LINES, DecodingConfig(), "cpu")
    text = io.StringIO("".join(line + "\n" for line in LINES))
    stream = translate_stream(model, tokenizers, text, DecodingConfig(), "cpu", buffer=6)
    assert list(stream) == whole
    read = []

    def lines():
        for line in LINES:
            read.append(line)
            yield line

    stream = translate_stream(model, tokenizers, lines(), DecodingConfig(), "cpu", buffer=1)
    for count, text in enumerate(stream, start=1):
        assert len(read) == count
        assert text == whole[count - 1]


def test_stream_numbers_its_warnings(model, tokenizers):
    warnings = []
    lines = ["sun"] * 4 + [" ".join(WORDS * 4)]
    stream = translate_stream(
        model, tokenizers, lines, DecodingConfig(), "cpu", buffer=2, warn=warnings.append
    )
    assert len(list(stream)) == 5
    assert [text.split(":")[0] for text in warnings] == ["line 5"]


def test_training_mode_is_restored(model, tokenizers):
    model.train()
    first = translate(model, tokenizers, LINES[:3], DecodingConfig(), "cpu")
    assert model.training
    model.eval()
    assert translate(model, tokenizers, LINES[:3], DecodingConfig(), "cpu") == first
    assert not model.training
