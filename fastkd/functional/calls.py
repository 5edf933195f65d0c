"""Calls of the losses as backends take them: tensors that were checked, and options.

One dataclass a family, from the public functions to the backends, and what a backend is.
"""

from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Required, TypedDict, TypeVar

from torch import Tensor

from fastkd.functional.sparse import SparseTeacher

# Attention alignment.


@dataclass(frozen=True)
class AlignmentOptions:
    """As in `attention_alignment_loss`; hashable."""

    causal: bool = False
    normalization: str = "map"
    temperature: float = 1.0
    padding: str = "exclude"
    reduction: str = "sum"


class AlignmentKeywords(TypedDict, total=False):
    """`AlignmentOptions` as keyword arguments of the public functions."""

    causal: bool
    normalization: str
    temperature: float
    padding: str
    reduction: str


@dataclass(frozen=True, eq=False)
class QueryKey:
    """One model's attention: maps are softmax(scale · query @ keyᵀ)."""

    query: tuple[Tensor, ...]  # layers (B, heads, Tq, D)
    key: tuple[Tensor, ...]  # (B, key heads, Tk, D)
    scale: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.query, *self.key)

    @property
    def queries(self) -> int:
        return self.query[0].shape[2]

    @property
    def keys(self) -> int:
        return self.key[0].shape[2]

    @property
    def maps(self) -> int:
        return sum(layer.shape[1] for layer in self.query)


@dataclass(frozen=True, eq=False)
class Maps:
    """One model's attention maps, given as they are."""

    layers: tuple[Tensor, ...]  # (B, heads, Tq, Tk)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.layers

    @property
    def queries(self) -> int:
        return self.layers[0].shape[2]

    @property
    def keys(self) -> int:
        return self.layers[0].shape[3]

    @property
    def maps(self) -> int:
        return sum(layer.shape[1] for layer in self.layers)


Side = TypeVar("Side", QueryKey, Maps)


@dataclass(frozen=True, eq=False)
class AlignmentCall(Generic[Side]):
    student: Side
    teacher: Side  # constants
    weight: Tensor | None  # (Nt, Ns)
    bias: Tensor | None  # (Nt,)
    query_lengths: Tensor | None  # (B,) int64; None where all queries count
    key_lengths: Tensor | None
    mask: Tensor | None  # (B, Tq or 1, Tk) bool, cells that a query may attend to; None: lengths
    options: AlignmentOptions

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that decide in which precision the loss is computed."""
        given: tuple[Tensor | None, ...] = (
            *self.student.tensors,
            *self.teacher.tensors,
            self.weight,
        )
        return tuple(tensor for tensor in given if tensor is not None)


class AlignmentBackend(Protocol):
    def unavailable(self, call: AlignmentCall[QueryKey] | AlignmentCall[Maps], /) -> str | None:
        """Why the backend cannot serve `call`, or None."""

    def query_key_loss(self, call: AlignmentCall[QueryKey], /) -> Tensor: ...

    def map_loss(self, call: AlignmentCall[Maps], /) -> Tensor: ...


# Token losses.

DIVERGENCES = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd")
# What a list of the teacher's likely ids can serve: elsewhere the loss has no finite value, or
# compares masses that do not add up to 1.
SERVED = {
    "drop": ("kl",),
    "spread": DIVERGENCES,
    "renormalize": ("kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"),
    "tail": DIVERGENCES,
}
BETAS = {"jsd": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1}  # by default


@dataclass(frozen=True)
class TokenOptions:
    """As in `token_distillation_loss`; hashable."""

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
    student_soft_cap: float | None = None
    teacher_soft_cap: float | None = None
    student_logit_scale: float = 1.0
    teacher_logit_scale: float = 1.0
    vocabulary: int | None = None
    divergence: str = "kl"
    beta: float | None = None
    entropy_weight: float = 0.0

    @property
    def teaches(self) -> bool:
        """Whether a teacher is needed."""
        return self.kd_weight != 0 or self.rank_weight != 0

    @property
    def skew(self) -> float:
        """β of the divergence; 0 where it has none."""
        return BETAS.get(self.divergence, 0.0) if self.beta is None else self.beta

    @property
    def form(self) -> str:
        """The divergence, where β = 0 takes the skew away."""
        skewed = self.divergence.startswith("skew_")
        return self.divergence[len("skew_") :] if skewed and self.skew == 0 else self.divergence


class TokenKeywords(TypedDict, total=False):
    """`TokenOptions` as keyword arguments of the public functions."""

    ce_weight: Required[float]
    kd_weight: Required[float]
    rank_weight: float
    top_k: int
    label_smoothing: float
    student_temperature: float
    teacher_temperature: float
    ignore_index: int
    reduction: str
    return_prediction: bool
    student_soft_cap: float | None
    teacher_soft_cap: float | None
    student_logit_scale: float
    teacher_logit_scale: float
    vocabulary: int | None
    divergence: str
    beta: float | None
    entropy_weight: float


class Projected(NamedTuple):
    """Last hidden states and an output projection: logits = hidden weightᵀ + bias."""

    hidden: Tensor  # (..., D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)


Logits = TypeVar("Logits", Tensor, Projected)


@dataclass(frozen=True, eq=False)
class TokenCall(Generic[Logits]):
    student: Logits  # (..., V)
    teacher: Logits | SparseTeacher | None  # a constant
    target: Tensor | None  # (...) integers
    counted: Tensor | None  # (...) bool; None where every position counts
    options: TokenOptions


class TokenLosses(NamedTuple):
    """`loss` = ce_weight·ce + kd_weight·kd + rank_weight·rank + entropy_weight·entropy.

    The components are detached.

    Scalars, or (...) with `reduction="none"`; `prediction` is (...) int64, or None.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    rank: Tensor
    prediction: Tensor | None
    entropy: Tensor


class TokenBackend(Protocol):
    def unavailable(self, call: TokenCall[Tensor] | TokenCall[Projected], /) -> str | None:
        """Why the backend cannot serve `call`, or None."""

    def dense_losses(self, call: TokenCall[Tensor], /) -> TokenLosses: ...

    def linear_losses(self, call: TokenCall[Projected], /) -> TokenLosses: ...
