"""What the kernels are asked to compute, and the tile sizes chosen for it."""

import math
from dataclasses import dataclass, fields

import torch

from fastkd_kernels.common import block_size

RESTS = ("drop", "spread", "renormalize", "tail")
# Of the divergence, in the order of row/divergence.py.
FORMS = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
LARGEST_TOP_K = 32
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

    @property
    def teaches(self) -> bool:
        """Whether a teacher is needed."""
        return self.kd_weight != 0 or self.rank_weight != 0

    @property
    def writes_list(self) -> bool:
        """Whether a listed teacher's divergence is computed from logits of every id."""
        return self.kd_weight != 0 and (self.form != "kl" or self.rest == "tail")

    def packed(self) -> list[float]:
        """As the operators take it: numbers only."""
        numbers = [getattr(self, each.name) for each in fields(self)[:-3]]
        chosen = (RESTS.index(self.rest), FORMS.index(self.form), self.beta)
        return [*map(float, numbers), *map(float, chosen)]

    @staticmethod
    def unpacked(numbers: list[float]) -> "TokenSettings":
        ce, kd, rank, top_k, smoothing, student, teacher, entropy, rest, form, beta = numbers
        scales = student, teacher, entropy
        names = RESTS[int(rest)], FORMS[int(form)]
        return TokenSettings(ce, kd, rank, int(top_k), smoothing, *scales, *names, beta)


def row_shape(
    vocabulary: int, ranked: bool, step: int, unit: int, form: str
) -> tuple[int, int, int]:
    """(BLOCK_V, warps, most registers a thread) for logits `step` apart, rows aligned to `unit`.

    Two block shapes in all, so that few kernels serve every vocabulary. Keys of both lists, and an
    address for each logit where 16 bytes cannot be loaded at once, take registers: such rows are
    walked in half as many logits. Without a bound the compiler spills a few bytes to fit one
    program more on a multiprocessor; divergences other than KL need more than that bound.
    """
    whole = step == 1 and unit >= 8
    block = 2048 if whole and not ranked and vocabulary > 1024 else 1024
    return block, 4, 128 if whole and form == "kl" else 255


def fuses(form: str) -> bool:
    """Whether multiplications and additions may be fused.

    A term that ends in a product would be fused into the exchange of its sum between lanes, each
    of which then holds other digits.
    """
    return form == "kl"


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
    )
    exponent = math.floor(math.log2(8192 / max(steepest, 2**-20)))
    return 2.0 ** min(max(exponent, 0), 24)


def _steepness(settings: TokenSettings) -> float:
    """A bound of the divergence's gradient by a logit, but for reverse KL, which has none."""
    if settings.form == "reverse_kl":
        return _STEEPEST
    return 1 - math.log(settings.beta) if settings.form == "skew_reverse_kl" else 1.0
