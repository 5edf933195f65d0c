"""What the kernels are asked to compute, and the tile sizes chosen for it."""

import math
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch

from fastkd_kernels.common import block_size

RESTS = ("drop", "spread", "renormalize", "tail")
FORMS = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
# As the kernels compute them, in the order of row/divergence.py.
KERNEL_FORMS = (*FORMS, "jsd_low", "jsd_high", "skew_kl_high", "skew_reverse_kl_high")
SCORES = ("plain", "scaled", "capped")  # in the order of row/scores.py
LARGEST_TOP_K = 32
_EDGE = 1 / 16  # of β, where a mixture is so nearly one of the two that it needs a series
_STEEPEST = 64.0  # what a derivative that grows with log-probabilities is taken to reach


@dataclass(frozen=True)
class TokenSettings:
    """Weights and shape of the losses; the same names as in `token_distillation_loss`."""

    ce_weight: float
    kd_weight: float
    rank_weight: float
    top_k: int
    label_smoothing: float
    student_temperature: float
    teacher_temperature: float
    entropy_weight: float = 0.0
    rest: str = "drop"
    form: str = "kl"
    beta: float = 0.0
    student_logit_scale: float = 1.0
    teacher_logit_scale: float = 1.0
    student_soft_cap: float | None = None
    teacher_soft_cap: float | None = None
    vocabulary: int | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Computed once: every launch looks its plan up by its settings."""
        return hash(astuple(self))

    @property
    def teaches(self) -> bool:
        """Whether a teacher is needed."""
        return self.kd_weight != 0 or self.rank_weight != 0

    @property
    def writes_list(self) -> bool:
        """Whether a listed teacher's divergence is computed from logits of every id."""
        return self.kd_weight != 0 and (self.form != "kl" or self.rest == "tail")

    @property
    def kernel_form(self) -> tuple[str, float]:
        """The divergence as the kernels have it, and its β."""
        if not self.kd_weight:
            return "kl", 0.0
        if self.form == "jsd" and self.beta < _EDGE:
            return "jsd_low", self.beta
        if self.beta > 1 - _EDGE:
            return f"{self.form}_high", 1 - self.beta
        return self.form, self.beta

    def compared(self, vocabulary: int) -> int:
        """The first ids that take part in what has a teacher, and in the entropy."""
        if self.vocabulary is None or not (self.teaches or self.entropy_weight):
            return vocabulary
        return min(self.vocabulary, vocabulary)

    def packed(self) -> list[float]:
        """As the operators take it: numbers only."""
        numbers = {each.name: getattr(self, each.name) for each in fields(self)}
        numbers |= {"rest": RESTS.index(self.rest), "form": FORMS.index(self.form)}
        return [float(number or 0) for number in numbers.values()]

    @staticmethod
    def unpacked(numbers: list[float]) -> "TokenSettings":
        names = [each.name for each in fields(TokenSettings)]
        found: dict[str, Any] = dict(zip(names, numbers, strict=True))
        found |= {"rest": RESTS[int(found["rest"])], "form": FORMS[int(found["form"])]}
        found |= {"top_k": int(found["top_k"]), "vocabulary": int(found["vocabulary"]) or None}
        for name in ("student_soft_cap", "teacher_soft_cap"):
            found[name] = found[name] or None
        return TokenSettings(**found)


class Scoring(NamedTuple):
    """How scores are read of a side's logits."""

    kind: str  # of `SCORES`
    factor: float
    cap: float

    @staticmethod
    def of(scale: float, cap: float | None) -> "Scoring":
        if cap is None:
            return Scoring("plain" if scale == 1 else "scaled", scale, 1.0)
        return Scoring("capped", scale / cap, cap)


def row_shape(
    vocabulary: int, ranked: bool, step: int, unit: int, light: bool
) -> tuple[int, int, int]:
    """(BLOCK_V, warps, most registers a thread) for logits `step` apart, rows aligned to `unit`.

    Two block shapes in all, so that few kernels serve every vocabulary. Keys of both lists, and an
    address for each logit where 16 bytes cannot be loaded at once, take registers: such rows are
    walked in half as many logits. Without a bound the compiler spills a few bytes to fit one
    program more on a multiprocessor; what is not light needs more than that bound: divergences
    other than KL, scores that are not the logits, ids that are not compared, ranks by a list.
    """
    whole = step == 1 and unit >= 8
    block = 2048 if whole and not ranked and vocabulary > 1024 else 1024
    return block, 4, 128 if whole and light else 255


def fuses(form: str, *scores: str) -> bool:
    """Whether multiplications and additions may be fused.

    A term that ends in a product would be fused into the exchange of its sum between lanes, each
    of which then holds other digits; a score that ends in one, into its distance from the largest.
    """
    return form == "kl" and all(kind == "plain" for kind in scores)


def listed_block(listed: int) -> int:
    return block_size(listed, least=16, most=128)


def gradient_gain(settings: TokenSettings, dtype: torch.dtype) -> float:
    """The power of two that a stored gradient is multiplied with, to keep it off the subnormals.

    Only float16 needs it: its entries are products of probabilities with the weights below, and
    the factor that divides by rows or undoes a loss scale is not known when they are stored.
    """
    if dtype != torch.float16:
        return 1.0
    steepest = (
        abs(settings.ce_weight)
        + abs(settings.kd_weight) * _steepness(settings) / settings.student_temperature
        + abs(settings.rank_weight) * settings.top_k / settings.student_temperature
        + abs(settings.entropy_weight) * _STEEPEST / settings.student_temperature
    ) * settings.student_logit_scale
    exponent = math.floor(math.log2(8192 / max(steepest, 2**-20)))
    return 2.0 ** min(max(exponent, 0), 24)


def _steepness(settings: TokenSettings) -> float:
    """A bound of the divergence's gradient by a logit, but for reverse KL, which has none."""
    if settings.form == "reverse_kl":
        return _STEEPEST
    if settings.form == "jsd":
        of_p = 1 - settings.beta
        return 2 * min(settings.beta, of_p * (1 - math.log(of_p)))
    if settings.form not in ("skew_kl", "skew_reverse_kl"):
        return 1.0
    # p·(1 − β)q/m, and of p·(log p/m − β p/m + β) 2(1 − β)/β·max(p, q) and twice that in its sum.
    ratio = (1 - settings.beta) / settings.beta
    if settings.form == "skew_kl":
        return min(1.0, ratio)
    return min(1 - math.log(settings.beta), 6 * ratio)
