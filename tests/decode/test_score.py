import pytest

from fastkd.decode.score import compare, score, sentence_chrf, tokenizer_of
from fastkd.errors import InputError

REFERENCES = ["The cat sat on the mat, again.", "It rains in the old town today."]


def test_perfect_translations():
    scores = score(REFERENCES, REFERENCES)
    assert scores.bleu == pytest.approx(100)
    assert scores.chrf == pytest.approx(100)


def test_bleu_by_hand():
    """The last of nine words is wrong: 8 of 9 words match, 7 of 8 pairs, 6 of 7, 5 of 6."""
    scores = score(["a b c d e f g h x"], ["a b c d e f g h i"])
    expected = (8 / 9 * 7 / 8 * 6 / 7 * 5 / 6) ** 0.25 * 100
    assert scores.bleu == pytest.approx(expected)
    assert 0 < scores.chrf < 100


def test_signatures_say_how():
    scores = score(REFERENCES, REFERENCES)
    assert "tok:13a" in scores.bleu_signature
    assert "nrefs:1" in scores.bleu_signature
    assert "nc:6" in scores.chrf_signature


@pytest.mark.parametrize(("left", "right"), [(REFERENCES, REFERENCES[:1]), ([], [])])
def test_refuses_unequal_numbers(left, right):
    with pytest.raises(InputError, match="as many translations as references"):
        score(left, right)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "13a"),
        ("dsb", "13a"),
        ("fa", "13a"),
        ("zh", "zh"),
        ("zh-TW", "zh"),
        ("zho_Hans", "zh"),
        ("yue", "zh"),
        ("TH", "char"),
        ("lo", "char"),
        ("km", "char"),
        ("mya_Mymr", "char"),
        ("bo", "char"),
        ("zhx", "13a"),
    ],
)
def test_the_tokenizer_of_a_language(language, expected):
    assert tokenizer_of(language) == expected


@pytest.mark.parametrize(("language", "own"), [("ja", "ja-mecab"), ("kor", "ko-mecab")])
def test_morphology_where_it_is_installed(language, own):
    found = tokenizer_of(language)
    assert found in (own, "char")
    if found == own:
        assert f"tok:{own}" in score(REFERENCES, REFERENCES, own).bleu_signature
    else:
        with pytest.raises(InputError, match=rf"tokenizer {own}: needs .* 'sacrebleu\["):
            score(REFERENCES, REFERENCES, own)


def test_languages_without_spaces_are_not_one_word_a_sentence():
    """Two of three clauses are right."""
    reference = "今天，老师喜欢苹果，医生看见城市。"
    found = ["今天，老师喜欢苹果，学生看见电影。"]
    assert score(found, [reference]).bleu < 1
    right = score(found, [reference], "zh")
    assert right.bleu > 50 and "tok:zh" in right.bleu_signature
    assert right.chrf == score(found, [reference]).chrf


def test_one_sentence():
    assert sentence_chrf("a cat", "a cat") == pytest.approx(100)
    assert sentence_chrf("a dog", "a cat") < 50


def test_a_system_against_itself_and_against_a_worse_one():
    references = [f"the {word} house stands near the river today" for word in "abcdefghijkl"]
    worse = [line.replace("river", "town") for line in references]
    bleu, chrf = compare(worse, references, references)
    assert (bleu.metric, chrf.metric) == ("BLEU", "chrF")
    assert bleu.system == pytest.approx(100) and bleu.baseline < 90
    assert bleu.p < 0.01 and chrf.p < 0.01
    same, _ = compare(worse, worse, references)
    assert same.p == pytest.approx(1.0) and same.system == same.baseline
    assert compare(worse, references, references) == [bleu, chrf]


def test_compares_the_same_sentences_only():
    with pytest.raises(InputError, match="as many translations"):
        compare(REFERENCES, REFERENCES[:1], REFERENCES)
