"""A weighted list of losses over a Transformers student: what the integrations share.

distillation = Distillation(student, [CrossEntropy(weight=0.5), WordKD(weight=0.5)], teacher)
loss, components = distillation(student, batch)
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fastkd.config.tree import A2D, CrossEntropy, LossConfig, TieKD, WordKD
from fastkd.errors import InputError
from fastkd.functional import SparseTeacher
from fastkd.integrations.heads import Head
from fastkd.integrations.passes import (
    COLUMNS,
    IGNORED,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    Inputs,
    ModelPass,
    is_encoder_decoder,
    predicted,
)
from fastkd.integrations.token_terms import Teaching, TokenTerms
from fastkd.integrations.transformers import ModelTaps
from fastkd.modules import AlignToDistill
from fastkd.terms.alignment import DEFAULT_WEIGHTS


class Distilled(NamedTuple):
    """A batch's share of an update's loss, and of its unweighted, detached components by name."""

    loss: Tensor
    components: dict[str, Tensor]


class Counts(NamedTuple):
    """What an update's losses are divided by: sums over its batches and processes, scalars."""

    batches: Tensor
    sentences: Tensor
    encoder: Tensor  # tokens of the encoder
    decoder: Tensor  # tokens of the decoder
    targets: Tensor  # labels that are predicted and not −100


class Distillation(nn.Module):
    """Losses of `student`, as in a run's configuration, and what of them is learned.

    student: a Transformers model with a linear output projection
    losses: CrossEntropy, WordKD, TieKD and A2D of `fastkd.config.tree`, or mappings of their keys,
        `name` among them
    teacher: another such model, which is frozen. None where no loss needs one, or where batches
        hold `teacher_ids` and `teacher_log_probs` (B, T, K) beside their `labels` (B, T)
    rest: what becomes of the mass that those leave out, as in `SparseTeacher`

    Token losses are sums over the predicted labels; A2D is one over sentences (normalization
    "map") or query tokens, and teacher maps. Each is divided by its count in the whole update, so
    none depends on how an update is cut into batches and processes. Logits are never held: the
    losses take last hidden states, output projection, and the scale and offset that the model
    gives its logits.

    Raises InputError for losses that do not fit the models or each other.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: Sequence[Any],
        teacher: nn.Module | None = None,
        *,
        rest: str = "renormalize",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.losses = _by_name(losses)
        self.rest = rest
        # A tuple keeps the models' parameters out of this module's own.
        self._heads = (Head(student), None if teacher is None else Head(teacher))
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            if is_encoder_decoder(teacher) != is_encoder_decoder(student):
                raise InputError(
                    "teacher: expected an encoder-decoder exactly where the student is one"
                )
        distilling = [loss for loss in self.losses.values() if isinstance(loss, WordKD | TieKD)]
        self._listing = teacher is None and bool(distilling)
        self._token_terms = TokenTerms(self.losses.get("cross_entropy"), distilling, backend)
        self._check_iterations(self.losses.get("tie_kd"))
        self.alignment: AlignToDistill | None = None
        if a2d := self.losses.get("a2d"):
            if teacher is None:
                raise InputError("losses: a2d needs a teacher model; columns hold no queries")
            self.alignment = AlignToDistill(
                ModelTaps(student).maps,  # type: ignore[arg-type]
                ModelTaps(teacher).maps,  # type: ignore[arg-type]
                weights={"encoder": a2d.encoder, "decoder": a2d.decoder, "cross": a2d.cross},
                normalization=a2d.normalization,
                temperature=a2d.temperature,
                padding=a2d.padding,
                backend=backend,
            )

    @property
    def student(self) -> nn.Module:
        return self._heads[0].model

    @property
    def teacher(self) -> nn.Module | None:
        return self._heads[1].model if self._heads[1] else None

    def counts(self, batches: Iterable[Inputs]) -> Tensor:
        """(5,): `Counts` of this process's batches of an update, to be summed over processes."""
        rows = [torch.stack(self._counts(batch)) for batch in batches]
        return torch.stack(rows).sum(0) if rows else torch.zeros(5)

    def forward(
        self, model: nn.Module, inputs: Inputs, counts: Tensor | None = None, epoch: int = 1
    ) -> Distilled:
        """The losses of one batch, computed within the student's forward pass.

        model: the student, or what wraps it, such as `DistributedDataParallel`
        inputs: what the student is called with, and `labels`
        counts: those of the whole update; None: it is this batch
        epoch: from 1; A2D decays by it
        """
        sizes = self.counts([inputs]) if counts is None else counts
        divisors = Counts(*sizes.to(inputs["labels"].device).clamp(min=1).unbind())
        called_with = {k: v for k, v in inputs.items() if k not in COLUMNS}
        taps = self.alignment is not None
        with contextlib.ExitStack() as stack:
            head, other = self._heads
            student = ModelPass(head, inputs, stack, taps)
            teacher: ModelPass | None = None
            teaching: Teaching = self._listed(inputs) if self._listing else None
            if other is not None:
                with torch.no_grad():
                    teacher = ModelPass(other, inputs, stack, taps)
                    teaching = teacher.states(other.model(**called_with))

            def losses(module: nn.Module, arguments: tuple, output: Any) -> Distilled:
                states = student.states(output)
                loss, components = self._token_terms(student, states, teacher, teaching)
                components = {name: sums / divisors.targets for name, sums in components.items()}
                loss = loss / divisors.targets
                if teacher is not None and self.alignment is not None:
                    term, parts = self._aligned(self.alignment, student, teacher, divisors, epoch)
                    loss, components = loss + term, components | parts
                return Distilled(loss, components)

            # In the forward pass, as wrappers see from its output which parameters were used.
            stack.callback(head.model.register_forward_hook(losses).remove)
            return model(**called_with)

    def _aligned(
        self,
        align: AlignToDistill,
        student: ModelPass,
        teacher: ModelPass,
        counts: Counts,
        epoch: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A2D, divided as `fastkd.terms.alignment` does."""
        config = self.losses["a2d"]
        weight = DEFAULT_WEIGHTS[config.normalization] if config.weight is None else config.weight
        weight *= config.decay ** (epoch - 1)
        losses, components = [], {}
        for kind, alignment in align.kinds.items():
            groups = counts.encoder if kind == "encoder" else counts.decoder
            if config.normalization == "map":
                groups = counts.sentences
            ours, theirs = getattr(student.taps, kind), getattr(teacher.taps, kind)
            loss = alignment(ours, theirs) / (groups * theirs.maps)
            losses.append(weight * align.weights[kind] * loss)
            components[f"a2d.{kind}"] = loss.detach()
        return torch.stack(losses).sum(), components

    def _counts(self, inputs: Inputs) -> Counts:
        if inputs.get("labels") is None:
            raise InputError("labels: expected in every batch")
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        decoder_mask = inputs.get("decoder_attention_mask")
        given = (mask if mask is not None else torch.ones_like(inputs["input_ids"])) != 0
        read = (labels != IGNORED) if decoder_mask is None else decoder_mask != 0
        sizes = (
            torch.tensor(1),
            torch.tensor(len(labels)),
            given.sum(),
            (read if is_encoder_decoder(self.student) else given).sum(),
            (predicted(self.student, labels) != IGNORED).sum(),
        )
        return Counts(*(size.to(labels.device, torch.float32) for size in sizes))

    def _listed(self, inputs: Inputs) -> SparseTeacher:
        """What the batch's columns say of the predicted labels."""
        for name in COLUMNS:
            if name not in inputs:
                raise InputError(
                    f"{name}: expected in every batch, as TeacherCollator puts it there, or a "
                    f"teacher: losses has {', '.join(self.losses)}"
                )
        ids, log_probs = (
            predicted(self.student, inputs[name]) for name in (TEACHER_IDS, TEACHER_LOG_PROBS)
        )
        return SparseTeacher(ids, log_probs, self.rest)

    def _check_iterations(self, loss: TieKD | None) -> None:
        if loss is None or loss.iterations == 1:
            return
        if self.teacher is None or not is_encoder_decoder(self.student):
            raise InputError(
                f"losses: tie_kd.iterations: expected 1, not {loss.iterations}, where student and "
                "teacher are not both encoder-decoder models"
            )


def _by_name(losses: Sequence[Any]) -> dict[str, Any]:
    """The losses that have a weight, by name."""
    served = (CrossEntropy, WordKD, TieKD, A2D)
    found: dict[str, Any] = {}
    for position, given in enumerate(losses):
        loss = _parsed(given, position) if isinstance(given, Mapping) else given
        if not isinstance(loss, served):
            names = ", ".join(kind.name for kind in served)
            raise InputError(f"losses.{position}: expected one of {names}, not {given!r}")
        if loss.name in found:
            raise InputError(f"losses.{position}: {loss.name} is listed twice")
        if loss.weight != 0:
            found[loss.name] = loss
    if not set(found) - {"a2d"}:
        raise InputError("losses: expected at least one of cross_entropy, word_kd, tie_kd")
    return found


def _parsed(loss: Mapping, position: int) -> Any:
    try:
        return TypeAdapter(LossConfig).validate_python(dict(loss))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in ("losses", position, *problem["loc"]))
        raise InputError(f"{key}: {problem['msg']}, not {problem['input']!r}") from None
