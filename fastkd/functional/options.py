"""What a loss is asked to compute, as backends receive it: checked, immutable, hashable."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AlignmentOptions:
    """Options of the attention alignment losses, as in `attention_alignment_loss`."""

    causal: bool = False
    student_scale: float = 1.0  # resolved; maps have none
    teacher_scale: float = 1.0
    normalization: str = "map"
    temperature: float = 1.0
    padding: str = "exclude"
    reduction: str = "sum"


@dataclass(frozen=True)
class TokenOptions:
    """Options of the token losses, as in `token_distillation_loss`."""

    ce_weight: float
    kd_weight: float
    rank_weight: float = 0.0
    top_k: int = 5
    label_smoothing: float = 0.0
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    ignore_index: int = -100
    reduction: str = "sum"
    return_prediction: bool = False
