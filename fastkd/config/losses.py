"""The losses that a student can be trained by, each with its options.

Weights and numbers of passes may be a number, or a schedule over training such as
`{value: 1, begin: 3000}`.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fastkd.config.schedule import Passes, Weight
from fastkd.config.types import (
    STRICT,
    Flag,
    NonNegative,
    Probability,
    Repeats,
    Share,
    Size,
    Temperature,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CrossEntropy:
    """Cross-entropy to the reference translation."""

    name: Literal["cross_entropy"] = "cross_entropy"
    weight: Weight = 1.0
    label_smoothing: Probability = 0.1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WordKD:
    """Word-level distillation: a divergence of teacher q and student p at each target position.

    divergence: KL(q ‖ p), or another as in `fastkd.token_distillation_loss`
    beta: of jsd and the skewed ones; None: 0.5 and 0.1
    t_squared: the divergence is multiplied with student_temperature², which keeps its gradient's
        size (Hinton et al., 2015, section 2)
    """

    name: Literal["word_kd"] = "word_kd"
    weight: Weight = 0.8
    student_temperature: Temperature = 1.0
    teacher_temperature: Temperature = 1.0
    divergence: Literal["kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"] = "kl"
    beta: Probability | None = None
    t_squared: Flag = False

    def __post_init__(self) -> None:
        if self.beta is None:
            return
        if self.divergence not in ("jsd", "skew_kl", "skew_reverse_kl"):
            raise ValueError(f"no beta, which {self.divergence} does not have")
        if self.beta == 1 or (self.divergence == "jsd" and self.beta == 0):
            raise ValueError("a beta below 1, and above 0 for jsd, whose ends are kl, reverse_kl")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TieKD:
    """KL + hierarchical ranking, averaged over iterative passes; the defaults are as published.

    For a student that agrees with its teacher already: earlier the ranking works against the KL.
    """

    name: Literal["tie_kd"] = "tie_kd"
    weight: Weight = 0.5
    rank_weight: Weight = 1.0  # of the ranking, relative to the KL
    top_k: Size = 5
    iterations: Passes = 3
    student_temperature: Temperature = 1.0
    teacher_temperature: Temperature = 1.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class A2D:
    """Attention alignment, per kind of map.

    weight: multiplies encoder · E + decoder · D + cross · C, each the mean of a kind's divergences
        over query rows and teacher maps of the whole update ("map": over sentences and teacher
        maps), beside a mean of cross-entropies over tokens. None: 1 of "mixture", 30 of "row", 80
        of "map", which have that size. "map" as published, whose sum is over S sentences a batch
        and N teacher maps, is S · N
    """

    name: Literal["a2d"] = "a2d"
    weight: Weight | None = None
    encoder: NonNegative = 1.0
    decoder: NonNegative = 0.5
    cross: NonNegative = 0.5
    decay: Share = 0.9  # weight · decay^(epoch-1)
    normalization: Literal["map", "row", "mixture"] = "mixture"  # "map": as published
    temperature: Temperature = 1.0
    padding: Literal["exclude", "include"] = "exclude"

    def __post_init__(self) -> None:
        if not (self.encoder or self.decoder or self.cross):
            raise ValueError("encoder, decoder or cross above 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HiddenStates:
    """Mean squared distance of the last hidden states, through a learned map of widths."""

    name: Literal["hidden"] = "hidden"
    weight: Weight = 1.0
    encoder: Flag = True
    decoder: Flag = True

    def __post_init__(self) -> None:
        if not (self.encoder or self.decoder):
            raise ValueError("encoder or decoder")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MaskedCrossEntropy:
    """Cross-entropy to the reference at the masked positions of a cmlm's input."""

    name: Literal["masked_cross_entropy"] = "masked_cross_entropy"
    weight: Weight = 1.0
    label_smoothing: Probability = 0.1
    self_correction: Probability = 0.0  # share of unmasked pieces replaced by guesses (CMLMC)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Length:
    """Cross-entropy of a cmlm's length predictor."""

    name: Literal["length"] = "length"
    weight: Weight = 0.1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiMS:
    """Several mask-predict steps of the teacher distilled into one pass of the student.

    The student starts from the teacher's weights, so both models have the same sizes.
    """

    name: Literal["dims"] = "dims"
    weight: Weight = 1.0
    steps: Repeats = 2  # of the teacher
    mask: Literal["random", "full"] = "random"
    reconsider: Flag = True  # steps predict unmasked pieces anew; false for a teacher that never
    # learned to (without self-correction): such pieces keep what they were predicted with
    ema: Probability = 0.9992  # decay of the teacher that follows the student; 0 = it stays fixed
    teacher_temperature: Temperature = 0.5
    student_temperature: Temperature = 1.0
    labels: Literal["soft", "hard"] = "soft"  # hard: the teacher's best piece
    hidden_weight: Weight = 0.4  # of the distance of the last states, relative to the KL
    dropout: Flag = False  # whether the student has dropout


LossConfig = Annotated[
    CrossEntropy | WordKD | TieKD | A2D | HiddenStates | MaskedCrossEntropy | Length | DiMS,
    Field(discriminator="name"),
]
