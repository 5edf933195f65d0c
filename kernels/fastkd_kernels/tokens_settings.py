"""What the kernels are asked to compute, and the tile sizes chosen for it."""

import math
from dataclasses import astuple, dataclass

import torch

from fastkd_kernels.common import block_size

RESTS = ("drop", "spread", "renormalize")
LARGEST_TOP_K = 32


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
    rest: str = "drop"

    def packed(self) -> list[float]:
        """As the operators take it: numbers only."""
        *numbers, rest = astuple(self)
        return [*map(float, numbers), float(RESTS.index(rest))]

    @staticmethod
    def unpacked(numbers: list[float]) -> "TokenSettings":
        *_, rest = numbers
        ce, kd, rank, top_k, smoothing, student, teacher, _ = numbers
        return TokenSettings(
            ce, kd, rank, int(top_k), smoothing, student, teacher, RESTS[int(rest)]
        )


def row_blocks(vocabulary: int, ranked: bool) -> tuple[int, int]:
    """(BLOCK_V, warps): two shapes in all, so that few kernels serve every vocabulary.

    Keys of both lists make ranking the widest in registers, so it takes half as many logits.
    """
    return (1024, 4) if ranked or vocabulary <= 1024 else (2048, 4)


def most_registers(step: int, unit: int) -> int:
    """Registers a thread may have, for logits `step` apart in rows aligned to `unit` of them.

    Without a bound the compiler spills a few bytes to fit one program more. Logits that are not
    loaded 16 bytes at a time cost an address each.
    """
    return 128 if step == 1 and unit >= 8 else 255


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
        + abs(settings.kd_weight) / settings.student_temperature
        + abs(settings.rank_weight) * settings.top_k / settings.student_temperature
    )
    exponent = math.floor(math.log2(8192 / max(steepest, 2**-20)))
    return 2.0 ** min(max(exponent, 0), 24)
