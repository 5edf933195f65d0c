import json

import numpy as np
import pytest

from fastkd.config.tree import TokenizerConfig
from fastkd.data import corpus as corpus_module
from fastkd.data.corpus import Corpus, write_corpus
from fastkd.data.tokenizer import Tokenizers, train_tokenizer
from fastkd.errors import InputError

LANGUAGES = ("aa", "bb")


@pytest.fixture
def pairs(sentences):
    return list(zip(sentences(40, 5), sentences(40, 6), strict=True))


@pytest.fixture
def folder(tmp_path, joint, pairs):
    write_corpus(tmp_path / "train", pairs, joint, LANGUAGES)
    return tmp_path / "train"


def test_a_corpus_gives_back_what_the_tokenizers_made(folder, joint, pairs):
    corpus = Corpus(folder)
    sources, targets = (joint.source.encode(side) for side in zip(*pairs, strict=True))
    assert len(corpus) == len(pairs)
    assert [corpus.source(i).tolist() for i in range(len(corpus))] == sources
    assert [corpus.target(i).tolist() for i in range(len(corpus))] == targets
    assert corpus.source_lengths.tolist() == [len(row) for row in sources]
    assert corpus.target_lengths.tolist() == [len(row) for row in targets]
    assert corpus.source_lengths.dtype == np.int32
    assert corpus.languages == LANGUAGES
    assert joint.target.decode([corpus.target(3)]) == [pairs[3][1]]


def test_blocks_do_not_show(folder, joint, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BLOCK", 7)
    seen = []
    blocks = write_corpus(tmp_path / "blocks", iter(pairs), joint, LANGUAGES, progress=seen.append)
    assert blocks.sha256 == Corpus(folder).sha256
    assert seen == [7, 14, 21, 28, 35, 40]


def test_blocks_of_long_lines_are_small(monkeypatch):
    """As the pieces of a line take far more memory than its text."""
    monkeypatch.setattr(corpus_module, "_CHARACTERS", 100)
    pairs = [("a" * 30, "b" * 30)] * 5 + [("a", "b")]
    blocks = list(corpus_module._blocks(iter(pairs)))
    assert [len(block) for block in blocks] == [2, 2, 2]
    assert [pair for block in blocks for pair in block] == pairs


def test_gather_joins_any_sentences(folder):
    corpus = Corpus(folder)
    ids = np.array([7, 2, 7, 39])
    tokens, lengths = corpus.sides[1].gather(ids)
    assert tokens.tolist() == [token for i in ids for token in corpus.target(i)]
    assert lengths.tolist() == corpus.target_lengths[ids].tolist()


def test_pairs_are_dropped_by_reason(tmp_path, joint):
    length = len(joint.source.encode(["bade figo"])[0])
    long, short = "bade figo", "ba"
    pairs = [
        (long, short),
        ("", short),
        (short, " "),
        (f"{long} {long}", ""),
        (short, f"{long} so"),
    ]
    corpus = write_corpus(tmp_path / "c", pairs, joint, LANGUAGES, max_length=length + 1)
    assert joint.source.decode([corpus.source(0)]) == [long]
    assert len(corpus) == 1
    assert corpus.dropped == {"empty": 3, "too long": 1}


def test_without_a_limit_every_line_is_kept(tmp_path, joint):
    pairs = [("", ""), ("ba " * 500, ""), ("", "ba")]
    corpus = write_corpus(tmp_path / "c", pairs, joint, LANGUAGES)
    assert len(corpus) == 3
    assert corpus.source_lengths[0] == corpus.target_lengths[1] == 0
    assert corpus.dropped == {"empty": 0, "too long": 0}


def test_a_side_may_be_empty_throughout(tmp_path, joint):
    write_corpus(tmp_path / "c", [("", ""), ("", "")], joint, LANGUAGES)
    corpus = Corpus(tmp_path / "c")
    assert corpus.source(1).tolist() == []
    tokens, lengths = corpus.sides[0].gather(np.array([0, 1]))
    assert (tokens.tolist(), lengths.tolist()) == ([], [0, 0])


def test_large_vocabularies_take_wider_ids(tmp_path, joint, pairs, monkeypatch):
    narrow = write_corpus(tmp_path / "narrow", pairs, joint, LANGUAGES)
    assert narrow.source(0).dtype == np.uint16
    monkeypatch.setattr(joint.source, "size", 65_537)
    wide = write_corpus(tmp_path / "wide", pairs, joint, LANGUAGES)
    assert wide.source(0).dtype == np.uint32
    assert wide.source(0).tolist() == narrow.source(0).tolist()


def test_the_hash_covers_text_and_tokenizers(folder, joint, pairs, tmp_path):
    swapped = [(right, left) for left, right in pairs]
    other = write_corpus(tmp_path / "swapped", swapped, joint, LANGUAGES)
    assert Corpus(folder).sha256 != other.sha256
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"tokenizers_sha256": "other"}))
    assert Corpus(folder).sha256 not in (other.sha256, meta["arrays_sha256"])
    assert Corpus(folder).tokenizers_sha256 == "other"


@pytest.mark.parametrize(
    "name", ["source.tokens", "target.tokens", "source.offsets", "target.offsets"]
)
def test_changed_arrays_are_recognised(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train: the prepared corpus is damaged: .*; prepare it"):
        Corpus(folder)


@pytest.mark.parametrize("name", ["source.tokens", "target.offsets"])
def test_truncated_and_missing_arrays_are_recognised_without_reading(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{name}: damaged: has [\d,]+ bytes instead of"):
        Corpus(folder, verify=False)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: cannot be read: No such file"):
        Corpus(folder, verify=False)


def test_bounds_that_do_not_fit_are_recognised_without_reading(folder):
    path = folder / "source.offsets"
    offsets = np.fromfile(path, "<i8")
    offsets[5] = offsets[-1] + 1
    offsets.tofile(path)
    with pytest.raises(InputError, match=r"source\.offsets does not fit source\.tokens"):
        Corpus(folder, verify=False)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{", r"meta\.json cannot be read"),
        ("[]", r"meta\.json cannot be read"),
        ('{"format": 1, "pairs": 3}', r"meta\.json cannot be read"),
        ('{"format": 99}', "prepared in format 99; expected 1"),
    ],
)
def test_damaged_meta_is_recognised(folder, meta, message):
    (folder / "meta.json").write_text(meta)
    with pytest.raises(InputError, match=message):
        Corpus(folder)


def test_a_folder_without_corpus_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no prepared corpus"):
        Corpus(tmp_path)


def test_a_failure_leaves_what_was_there(folder, joint, pairs):
    before = Corpus(folder).sha256

    def failing():
        yield from pairs[:3]
        raise InputError("the text ended here")

    with pytest.raises(InputError, match="the text ended here"):
        write_corpus(folder, failing(), joint, LANGUAGES)
    assert Corpus(folder).sha256 == before
    assert [path.name for path in folder.parent.iterdir()] == ["train"]


def test_an_open_corpus_outlives_its_replacement(folder, joint, pairs):
    corpus = Corpus(folder)
    first = corpus.source(0).tolist()
    write_corpus(folder, pairs[::-1], joint, LANGUAGES)
    assert corpus.source(0).tolist() == first
    assert Corpus(folder).source(39).tolist() == first


def test_separate_vocabularies_encode_their_own_side(tmp_path, joint, sentences):
    other = train_tokenizer(TokenizerConfig(vocabulary=50), sentences(300, 4), "text")
    pair = Tokenizers(joint.source, other)
    corpus = write_corpus(tmp_path / "c", [("bade figo", "bade figo")], pair, LANGUAGES)
    assert corpus.source(0).tolist() == joint.source.encode(["bade figo"])[0]
    assert corpus.target(0).tolist() == other.encode(["bade figo"])[0]
    assert corpus.tokenizers_sha256 == pair.sha256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", {"source": 1, "tbrget": 1}),
        ("dtype", {"source": "<u2", "target": "<f2"}),
        ("pairs", -1),
        ("languages", ["de"]),
        ("dropped", {"empty": "none"}),
    ],
)
def test_a_description_that_is_not_one(folder, key, value):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {key: value}))
    with pytest.raises(InputError, match=r"meta\.json cannot be read"):
        Corpus(folder)
