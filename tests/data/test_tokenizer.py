import io
import pickle
import re
import unicodedata

import pytest
import sentencepiece

from fastkd.config.tree import TokenizerConfig
from fastkd.data.tokenizer import Tokenizer, Tokenizers, train_tokenizer, train_tokenizers
from fastkd.errors import InputError


def test_special_ids_are_fixed_and_never_come_from_text(joint):
    tokenizer = joint.source
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    assert (*ids, tokenizer.mask_id) == (0, 1, 2, 3, 4)
    encoded = tokenizer.encode(["<mask> </s> <s> <pad> bade", ""])
    assert not {0, 2, 3, 4} & set(encoded[0])
    assert encoded[1] == []


def test_decoding_inverts_encoding_and_drops_specials(joint, sentences):
    lines, tokenizer = sentences(50, 3), joint.source
    rows = tokenizer.encode(lines)
    assert tokenizer.decode(rows) == lines
    padded = [[2, *row, 4, 3, 0, 0] for row in rows]
    assert tokenizer.decode(padded) == lines
    assert all(id < tokenizer.size for row in rows for id in row)


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_training_is_deterministic_and_has_the_size_asked_for(model, sentences, capfd):
    config = TokenizerConfig(vocabulary=50, model=model)
    first, again = (train_tokenizer(config, sentences(300, 1), "text") for _ in range(2))
    assert first.sha256 == again.sha256
    assert first.size == 50
    assert train_tokenizer(config, sentences(300, 2), "text").sha256 != first.sha256
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_too_large_a_vocabulary_names_the_largest_that_works(model, sentences):
    lines = sentences(30, 1)
    with pytest.raises(InputError, match=r"vocabulary = 9,000 is too large .* at most") as error:
        train_tokenizer(TokenizerConfig(vocabulary=9000, model=model), lines, "text")
    largest = int(re.search(r"at most ([\d,]+)", str(error.value))[1].replace(",", ""))
    config = TokenizerConfig(vocabulary=largest, model=model)
    assert train_tokenizer(config, lines, "text").size == largest


def test_too_small_a_vocabulary_names_the_least(sentences):
    with pytest.raises(InputError, match=r"vocabulary = 6 is too small .* at least") as error:
        train_tokenizer(TokenizerConfig(vocabulary=6), sentences(30, 1), "text")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_no_text_is_refused(lines):
    with pytest.raises(InputError, match="some file: no text"):
        train_tokenizer(TokenizerConfig(vocabulary=20), lines, "some file")


def test_separate_tokenizers_learn_from_their_own_side(write_text, sentences):
    capitals = [line.upper() for line in sentences(200, 2)]
    source, target = write_text("x.aa", sentences(200, 1)), write_text("x.bb", capitals)
    stages = []
    config = TokenizerConfig(vocabulary=50, joint=False)
    pair = train_tokenizers(config, source, target, 200, stages.append)
    assert stages == ["source", "target"]
    assert not pair.joint
    assert pair.source.unk_id in pair.source.encode(["BADE"])[0]
    assert pair.target.unk_id not in pair.target.encode(["BADE"])[0]


def test_a_sample_is_enough_and_bounded(write_text, sentences):
    lines = sentences(100, 1)
    # Only the sampled lines, every second one, may be read into the model.
    other = [line if number % 2 else line.upper() for number, line in enumerate(lines)]
    source, target = write_text("x.aa", other), write_text("x.bb", other)
    sampled = train_tokenizers(
        TokenizerConfig(vocabulary=40, sample=50), source, target, len(lines)
    )
    assert sampled.source.unk_id in sampled.source.encode(["BADE"])[0]
    assert sampled.source.unk_id not in sampled.source.encode(["bade"])[0]


@pytest.mark.parametrize("joined", [True, False])
def test_saved_tokenizers_load_from_the_folder(joined, joint, sentences, tmp_path):
    other = train_tokenizer(TokenizerConfig(vocabulary=50), sentences(300, 4), "text")
    saved = joint if joined else Tokenizers(joint.source, other)
    Tokenizers(other, joint.source).save(tmp_path)  # what was there before is replaced
    saved.save(tmp_path)
    loaded = Tokenizers.load(tmp_path)
    assert loaded.joint is joined
    assert loaded.sha256 == saved.sha256
    assert (loaded.source.sha256, loaded.target.sha256) == (
        saved.source.sha256,
        saved.target.sha256,
    )
    names = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert names == ({"joint.model"} if joined else {"source.model", "target.model"})


def test_the_hash_tells_the_sides_apart(joint, sentences):
    other = train_tokenizer(TokenizerConfig(vocabulary=50), sentences(300, 4), "text")
    pairs = [(joint.source, other), (other, joint.source), (other, other)]
    assert len({Tokenizers(*pair).sha256 for pair in [*pairs, pairs[0]]}) == 3


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no tokenizer; expected .*joint\.model"):
        Tokenizers.load(tmp_path)


def test_a_damaged_or_missing_model_is_refused(joint, tmp_path):
    joint.save(tmp_path)
    model = tmp_path / "tokenizer" / "joint.model"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(InputError, match=r"joint\.model: not a sentencepiece model"):
        Tokenizers.load(tmp_path)
    model.write_bytes(joint.source.model)
    model.rename(model.with_name("source.model"))
    with pytest.raises(InputError, match=r"target\.model: cannot be read: No such file"):
        Tokenizers.load(tmp_path)


def test_a_model_with_other_special_ids_is_refused(sentences):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300, 1)),
        model_writer=model,
        vocab_size=50,
        minloglevel=2,
    )
    with pytest.raises(InputError, match=r"mine: special pieces at other ids; expected <pad> 0"):
        Tokenizer(model.getvalue(), "mine")


def test_tokenizers_can_be_sent_to_another_process(joint):
    copy = pickle.loads(pickle.dumps(joint))
    assert copy.sha256 == joint.sha256
    assert copy.joint
    assert copy.source.encode(["bade"]) == joint.source.encode(["bade"])


# What writing systems need and sentencepiece's nmt_nfkc rewrites.
WRITTEN = {
    "Chinese": "你好，世界！（真的？）",
    "Japanese": "ﾊﾛｰ　ＮＨＫ「ねえ！」〜",
    "Thai": "ทำ น้ำ",
    "Persian": "می\u200cخواهم کتاب\u200cها",
    "Sinhala": "ශ්\u200dරී ලංකා",
    "Khmer": "សួស្តី\u200bពិភពលោក",
    "Arabic": "ﷲ ﻻ",
    "French": "«\u00a0oui\u00a0»",
    "Catalan": "col·legi coŀlegi",
    "signs": "5 m² ½ … № ™ ﬁn １２ Ａ µΩ 2º",
    "decomposed": unicodedata.normalize("NFD", "tiếng Việt"),
    "controls": "a\tb \u200e \u202e \u2028 \x0b \ufeff",
}


def trained(lines, **options):
    """A tokenizer of as many pieces as the lines give."""
    try:
        return train_tokenizer(TokenizerConfig(**{"vocabulary": 900, **options}), lines, "text")
    except InputError as error:
        largest = re.search(r"at most (\d+)", str(error))[1]
    return train_tokenizer(
        TokenizerConfig(**{**options, "vocabulary": int(largest)}), lines, "text"
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_text_of_any_script_comes_back_as_it_was(name):
    tokenizer = trained([WRITTEN[name]] * 30)
    assert tokenizer.decode(tokenizer.encode([WRITTEN[name]])) == [WRITTEN[name]]


@pytest.mark.parametrize("name", ["Vietnamese", "Korean", "signs"])
def test_nfc_composes_and_leaves_the_rest(name):
    text = {"Vietnamese": WRITTEN["decomposed"], "Korean": "\u1112\u1161\u11ab 각"}
    text = text.get(name) or WRITTEN[name].replace("Ω", "\u2126")
    tokenizer = trained([text] * 30, normalization="nfc")
    composed = unicodedata.normalize("NFC", text)
    assert composed != text
    assert tokenizer.decode(tokenizer.encode([text, composed])) == [composed] * 2
    assert trained([text] * 30, normalization="nfc").sha256 == tokenizer.sha256


def test_nmt_nfkc_rewrites():
    tokenizer = trained([WRITTEN["signs"]] * 30, normalization="nmt_nfkc")
    assert tokenizer.decode(tokenizer.encode(["5 m²"])) == ["5 m2"]


def test_the_source_may_be_normalized_alone(write_text, sentences):
    lines = [f"{line} m² ½" for line in sentences(200, 1)]
    source, target = write_text("x.aa", lines), write_text("x.bb", lines)
    config = TokenizerConfig(vocabulary=60, joint=False, source_normalization="nmt_nfkc")
    pair = train_tokenizers(config, source, target, 200)
    assert pair.source.decode(pair.source.encode(["m²"])) == ["m2"]
    assert pair.target.decode(pair.target.encode(["m²"])) == ["m²"]
    with pytest.raises(ValueError, match="joint: false where source_normalization"):
        TokenizerConfig(source_normalization="nmt_nfkc")


def test_what_is_decoded_is_one_line():
    """A carriage return within a line, as old files have it, would end it for other programs."""
    text = ["sun\rmoon star"] * 30 + ["sun moon star"] * 30
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=17), text, "text")
    assert tokenizer.decode(tokenizer.encode(["sun\rmoon\r"])) == ["sun moon"]


def test_bytes_stand_for_unknown_characters(sentences):
    config = TokenizerConfig(vocabulary=320, byte_fallback=True)
    tokenizer = train_tokenizer(config, sentences(300, 1), "text")
    lines = ["bade 猫 😀 \u2585 \x00"]
    rows = tokenizer.encode(lines)
    assert tokenizer.unk_id not in rows[0]
    assert tokenizer.decode(rows) == lines
    breaks = [tokenizer.encode([text])[0][-1] for text in ("a\n", "a\r")]
    assert set(breaks) < set(tokenizer.never_text)
    assert "\n" not in tokenizer.decode([[*rows[0], breaks[0], *rows[0]]])[0]
    assert trained(lines * 9).never_text == (0, 2, 4)


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["我喜欢苹果和书" * 215] * 20, "苹果"),  # documents a line, without spaces
        (["bade " * 900 + "zebra"] * 20, "zebra"),
        (["bade"] * 200 + ["zebra giraffe " * 500] * 50, "giraffe"),
        (["x" * 4192 + "é" * 4192 + "zebra"] * 20, "zebra"),
    ],
)
def test_long_lines_are_learned_from_too(lines, word):
    tokenizer = trained(lines)
    assert tokenizer.unk_id not in tokenizer.encode([word])[0]


def test_reserved_characters_cost_a_line_nothing_else(caplog):
    lines = ["bade \u2585 zebra", "bade \0 giraffe", "bade"] * 30
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=17), lines, "some text")
    assert tokenizer.unk_id not in tokenizer.encode(["zebra giraffe"])[0]
    assert "some text: 60 lines hold U+0000 or U+2585" in caplog.text


def plain_model(sentences, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300, 1)),
        model_writer=model,
        vocab_size=50,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad_id": 3, "bos_id": -1, "control_symbols": ["<2de>"]},
        {"user_defined_symbols": ["<mask>", "ba"], "model_type": "bpe"},
    ],
)
def test_a_plain_sentencepiece_file_is_a_tokenizer(options, sentences, tmp_path):
    model = plain_model(sentences, **options)
    (tmp_path / "plain.model").write_bytes(model)
    pair = Tokenizers.load(tmp_path / "plain.model")
    assert pair.joint
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    line = "bade figolu ½ <2de> x"
    assert [pair.source.piece(i) for i in pair.source.encode([line])[0]] == [
        "<unk>" if plain.is_unknown(plain.piece_to_id(piece)) else piece
        for piece in plain.encode(line, out_type=str)
    ]
    assert not set(pair.source.encode(["<mask> <s> </s>"])[0]) & {0, 2, 3, 4}
    (tmp_path / "none.model").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"none\.model: not a sentencepiece model"):
        Tokenizers.load(tmp_path / "none.model")
