"""BLEU and chrF of translations."""

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics import BLEU, CHRF

from fastkd.errors import InputError


@dataclass(frozen=True)
class Scores:
    """Corpus BLEU and chrF, 0 to 100, and the signatures by which others can repeat them."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Scores detokenised text, one reference a hypothesis, with sacrebleu's defaults.

    Raises:
        InputError: the two differ in number, or there are none.
    """
    if len(hypotheses) != len(references) or not references:
        raise InputError(
            f"score: expected as many translations as references and at least one, "
            f"not {len(hypotheses)} and {len(references)}"
        )
    bleu, chrf = BLEU(), CHRF()
    return Scores(
        bleu=bleu.corpus_score(hypotheses, [references]).score,
        chrf=chrf.corpus_score(hypotheses, [references]).score,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )
