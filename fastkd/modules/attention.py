"""Attention alignment with a learned mix of the student's maps."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.functional import alignment_loss_from_maps, attention_alignment_loss, checks
from fastkd.functional.calls import AlignmentOptions
from fastkd.taps import AttentionTap, AttentionTaps

KINDS = ("encoder", "decoder", "cross")
KIND_WEIGHTS = {"encoder": 1.0, "decoder": 0.5, "cross": 0.5}


class AlignmentLosses(NamedTuple):
    """loss = Σ kind weight · kind; the kinds are unweighted, and all four carry gradients."""

    loss: Tensor
    encoder: Tensor
    decoder: Tensor
    cross: Tensor


class AttentionAlignment(nn.Module):
    """`attention_alignment_loss` that holds `weight` (teacher_maps, student_maps), and a `bias`.

    The initial values are those of a 1×1 convolution: uniform within ±1/sqrt(student_maps); with
    normalization="mixture" the weight's rows pass through a softmax inside the loss. mix=False
    holds no weight and compares map n with map n. The remaining options are those of
    `attention_alignment_loss`.

    normalization: None is "mixture"; with a bias or a temperature, which it has no use for, it is
        "row", and a warning says so
    reduction: "rows" is the mean over counted query rows and teacher maps ("map": over sentences
        and teacher maps), the unit that the weights 1 of "mixture", 30 of "row" and 80 of "map"
        multiply beside a mean of cross-entropies over tokens

    Source: Jin et al., "Align-to-Distill", LREC-COLING 2024, §3.2 (Attention Alignment Module).
    """

    def __init__(
        self,
        student_maps: int,
        teacher_maps: int,
        normalization: str | None = None,
        bias: bool = False,
        *,
        mix: bool = True,
        temperature: float = 1.0,
        padding: str = "exclude",
        reduction: str = "rows",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if normalization is None:
            normalization = _default_form(bias, temperature)
        if student_maps < 1 or teacher_maps < 1:
            raise InputError(
                f"student_maps and teacher_maps must be at least 1, not {student_maps} and "
                f"{teacher_maps}"
            )
        options = AlignmentOptions(
            normalization=normalization,
            temperature=temperature,
            padding=padding,
            reduction=reduction,
        )
        checks.alignment_options(options, bias)
        if not mix and student_maps != teacher_maps:
            raise InputError(
                f"mix=False needs as many student_maps as teacher_maps, not {student_maps} and "
                f"{teacher_maps}"
            )
        self.student_maps = student_maps
        self.teacher_maps = teacher_maps
        self.options: dict[str, Any] = {
            "normalization": normalization,
            "temperature": temperature,
            "padding": padding,
            "reduction": reduction,
            "backend": backend,
        }
        self.weight = nn.Parameter(torch.empty(teacher_maps, student_maps)) if mix else None
        self.bias = nn.Parameter(torch.empty(teacher_maps)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.student_maps)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, *attention: Any, **call: Any) -> Tensor:
        """The loss of (student tap, teacher tap), or of (student_query, student_key,
        teacher_query, teacher_key) with the lengths, causality and scales as keywords."""
        if isinstance(attention[0], AttentionTap):
            student, teacher = attention
            attention = (student.query, student.key, teacher.query, teacher.key)
            call = {**_shared(student, teacher), **call}
        student_query, student_key, teacher_query, teacher_key = attention
        return attention_alignment_loss(
            student_query,
            student_key,
            teacher_query,
            teacher_key,
            self.weight,
            self.bias,
            **self.options,
            **call,
        )

    def from_maps(self, student_maps: Any, teacher_maps: Any, **call: Any) -> Tensor:
        """The loss of maps (B, N, Tq, Tk), with the lengths and causality as keywords."""
        return alignment_loss_from_maps(
            student_maps, teacher_maps, self.weight, self.bias, **self.options, **call
        )

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"student_maps={self.student_maps}, teacher_maps={self.teacher_maps}, {options}"


def _default_form(bias: bool, temperature: float) -> str:
    if not bias and temperature == 1:
        return "mixture"
    given = "a bias" if bias else "a temperature"
    warnings.warn(
        f"AttentionAlignment: {given} belongs to normalization 'row' or 'map'; 'row' is taken, as "
        "none is given (before 0.2 it was 'map')",
        FutureWarning,
        stacklevel=3,
    )
    return "row"


def _shared(student: AttentionTap, teacher: AttentionTap) -> dict[str, Any]:
    """What both taps must agree in, and the scale of each."""
    if student.causal != teacher.causal:
        raise InputError(
            f"causal: the student's tap has {student.causal}, the teacher's {teacher.causal}"
        )
    call = {
        "causal": student.causal,
        "student_scale": student.scale,
        "teacher_scale": teacher.scale,
    }
    for name in ("query_lengths", "key_lengths"):
        ours = getattr(student, name)
        call[name] = getattr(teacher, name) if ours is None else ours
    return call


class AlignmentSettings(TypedDict, total=False):
    """Keyword arguments of `AttentionAlignment`."""

    normalization: str | None
    bias: bool
    mix: bool
    temperature: float
    padding: str
    reduction: str
    backend: str


class AlignToDistill(nn.Module):
    """Align-to-Distill: an `AttentionAlignment` for each kind of attention, and their weights.

    student_maps, teacher_maps: the `AttentionTaps` of one call, or a mapping from kind ("encoder",
    "decoder", "cross") to its number of maps (layers × heads). A kind that either lacks, or whose
    entry in `weights` is 0, has no module and is never computed.
    weights: of the kinds, 1, ½ and ½ where not given.
    options: those of `AttentionAlignment`, for every kind.

    Called with the student's and the teacher's `AttentionTaps` it returns `AlignmentLosses`; a kind
    without module or without tap reads 0. With reduction="none" a kind is (B, maps) and loss (B,).

    Source: Jin et al., "Align-to-Distill", LREC-COLING 2024, §3.3.
    """

    def __init__(
        self,
        student_maps: AttentionTaps | Mapping[str, int],
        teacher_maps: AttentionTaps | Mapping[str, int],
        *,
        weights: Mapping[str, float] | None = None,
        **options: Unpack[AlignmentSettings],
    ) -> None:
        super().__init__()
        students, teachers = _map_counts(student_maps), _map_counts(teacher_maps)
        unknown = set(weights or ()) - set(KINDS)
        if unknown:
            raise InputError(f"weights: {unknown.pop()!r} is none of {', '.join(KINDS)}")
        self.weights = {**KIND_WEIGHTS, **(weights or {})}
        self.kinds = nn.ModuleDict(
            {
                kind: AttentionAlignment(students[kind], teachers[kind], **options)
                for kind in KINDS
                if students.get(kind) and teachers.get(kind) and self.weights[kind]
            }
        )

    @classmethod
    def from_taps(
        cls,
        student: AttentionTaps,
        teacher: AttentionTaps,
        *,
        weights: Mapping[str, float] | None = None,
        **options: Unpack[AlignmentSettings],
    ) -> Self:
        """For models whose taps hold a forward pass already, on the student's device."""
        tap = student.encoder or student.decoder or student.cross
        if tap is None:
            raise InputError("student: its taps hold no kind of attention")
        found = cls(student, teacher, weights=weights, **options)
        return found.to(tap.query[0].device)

    def forward(self, student: AttentionTaps, teacher: AttentionTaps) -> AlignmentLosses:
        losses = {}
        for kind, alignment in self.kinds.items():
            taps = getattr(student, kind), getattr(teacher, kind)
            if None not in taps and self.weights[kind]:
                losses[kind] = alignment(*taps)
        if not losses:
            raise InputError("student and teacher have no kind of attention to compare")
        total = sum(
            self.weights[kind] * (loss.sum(1) if loss.dim() else loss)
            for kind, loss in losses.items()
        )
        absent = torch.zeros_like(total.detach())
        return AlignmentLosses(total, *(losses.get(kind, absent) for kind in KINDS))


def _map_counts(maps: AttentionTaps | Mapping[str, int]) -> dict[str, int]:
    if isinstance(maps, Mapping):
        unknown = set(maps) - set(KINDS)
        if unknown:
            raise InputError(f"maps: {unknown.pop()!r} is none of {', '.join(KINDS)}")
        return dict(maps)
    taps = {kind: getattr(maps, kind) for kind in KINDS}
    return {kind: tap.maps for kind, tap in taps.items() if tap is not None}
