"""Scores of translations: the one home of BLEU and chrF, and of what BLEU cuts into words."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from fastkd.errors import InputError

# sacrebleu's way of cutting words, by language: ISO 639-1 and -3, without country or script.
_OWN_WAY = {
    "zh": ("zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "hak", "lzh"),
    "ja-mecab": ("ja", "jpn"),
    "ko-mecab": ("ko", "kor"),
    # Written without spaces between words: Thai, Lao, Khmer, Burmese, Tibetan, Dzongkha.
    "char": ("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "bo", "bod", "dz", "dzo"),
}
_PACKAGES = {"ja-mecab": ("MeCab", "sacrebleu[ja]"), "ko-mecab": ("mecab_ko", "sacrebleu[ko]")}
DEFAULT = "13a"
_SAMPLES = 1000  # of a paired bootstrap


@dataclass(frozen=True)
class Scores:
    """Corpus BLEU and chrF, 0 to 100, and the signatures by which others can repeat them."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


@dataclass(frozen=True)
class Difference:
    """One metric of two systems on the same sentences, by paired bootstrap resampling.

    p is the probability of a difference as large as this one were the two systems equally good
    (Koehn, 2004). The interval is the 95 % one of each system's own score.
    """

    metric: str
    baseline: float
    system: float
    baseline_interval: float
    system_interval: float
    p: float


def tokenizer_of(language: str) -> str:
    """The name by which sacrebleu knows how words of a language are to be cut.

    language: a code such as `zh`, `zh-TW`, `zho_Hans` or `jpn`. Chinese has `zh`, Japanese and
    Korean the morphological `ja-mecab` and `ko-mecab` where their packages are installed and else
    `char`, languages written without spaces `char`, every other one `13a`.
    """
    code = language.lower().replace("_", "-").partition("-")[0]
    for name, codes in _OWN_WAY.items():
        if code in codes:
            return name if _installed(name) else "char"
    return DEFAULT


def score(hypotheses: Sequence[str], references: Sequence[str], tokenizer: str = DEFAULT) -> Scores:
    """Scores detokenised text, one reference a hypothesis, with sacrebleu's defaults.

    tokenizer: of BLEU, as `tokenizer_of` gives it for the target language; chrF has none

    Raises:
        InputError: the two differ in number, or there are none; or the tokenizer's package is not
            installed.
    """
    _check(hypotheses, references)
    bleu, chrf = _bleu(tokenizer), CHRF()
    return Scores(
        bleu=bleu.corpus_score(hypotheses, [references]).score,
        chrf=chrf.corpus_score(hypotheses, [references]).score,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """chrF of one sentence, 0 to 100."""
    return float(_sentence_chrf().sentence_score(hypothesis, [reference]).score)


def compare(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    tokenizer: str = DEFAULT,
) -> list[Difference]:
    """BLEU and chrF of two systems' translations of the same sentences, by paired bootstrap.

    The 1,000 resamples are the same each time (sacrebleu's SACREBLEU_SEED draws others).

    Raises InputError as `score`.
    """
    _check(baseline, references)
    _check(system, references)
    test = PairedTest(
        [("baseline", list(baseline)), ("system", list(system))],
        {"BLEU": _bleu(tokenizer, [list(references)]), "chrF": CHRF(references=[list(references)])},
        references=None,
        test_type="bs",
        n_samples=_SAMPLES,
    )
    results: dict[str, Any] = test()[1]  # by the signature's name; of each system, as given
    pairs = [pair for name, pair in results.items() if name != "System"]
    return [
        # Of equal scores no resampled difference is larger, from which it would conclude p = 0.
        Difference(
            *(name, one.score, other.score, one.ci, other.ci),
            p=1.0 if one.score == other.score else other.p_value,
        )
        for name, (one, other) in zip(("BLEU", "chrF"), pairs, strict=True)
    ]


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not references:
        raise InputError(
            f"score: expected as many translations as references and at least one, "
            f"not {len(hypotheses)} and {len(references)}"
        )


def _bleu(tokenizer: str, references: list[list[str]] | None = None) -> BLEU:
    if not _installed(tokenizer):
        raise InputError(
            f"BLEU's tokenizer {tokenizer}: needs a package that is not installed: "
            f"pip install '{_PACKAGES[tokenizer][1]}'"
        )
    return BLEU(tokenize=tokenizer, references=references)


@cache
def _installed(tokenizer: str) -> bool:
    package = _PACKAGES.get(tokenizer)
    return package is None or importlib.util.find_spec(package[0]) is not None


@cache
def _sentence_chrf() -> CHRF:
    return CHRF()
