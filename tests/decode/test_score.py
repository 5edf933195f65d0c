import pytest

from fastkd.decode.score import score
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
