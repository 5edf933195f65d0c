"""A weighted list of losses over a Transformers student: what the integrations share.

distillation = Distillation(student, [CrossEntropy(weight=0.5), WordKD(weight=0.5)], teacher)
loss, components = distillation(student, batch)
"""

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from fastkd.config.losses import A2D, CrossEntropy, HiddenStates, LossConfig, TieKD, WordKD
from fastkd.errors import InputError
from fastkd.functional import SparseTeacher
from fastkd.integrations.counts import REFUSED, as_counts, counted, device_of, refused
from fastkd.integrations.judge import Kind, is_labelled, judge_both, kind_of, new_kinds, presume
from fastkd.integrations.models import (
    COLUMNS,
    IGNORED,
    TEACHER_IDS,
    TEACHER_LOG_PROBS,
    Inputs,
    LanguageModel,
    is_encoder_decoder,
    refuse_frozen,
    refuse_shared,
)
from fastkd.integrations.passes import Call, ModelPass
from fastkd.integrations.routers import RouterLoss, router_losses
from fastkd.integrations.sharded import is_sharded
from fastkd.integrations.together import end_if_told, most, several_processes, tell
from fastkd.integrations.transformers import ModelTaps
from fastkd.integrations.vocabularies import common_vocabulary
from fastkd.modules import AlignToDistill
from fastkd.terms.alignment import AlignmentTerm
from fastkd.terms.hidden import HiddenTerm
from fastkd.terms.listed import by_name, by_update, check_listed, most_passes
from fastkd.terms.passes import Components, Counts, Passes, Weighted, summed
from fastkd.terms.tokens import TokenTerms

ATTRIBUTE = "fastkd_distillation"  # of a student, what is learned beside it while it trains


class Distilled(NamedTuple):
    """A batch's share of an update's loss, and of its unweighted, detached components by name."""

    loss: Tensor
    components: Components


class Distillation(nn.Module):
    """Losses of `student`, as in a run's configuration, and what of them is learned.

    student: a Transformers model with a linear output projection
    losses: CrossEntropy, WordKD, TieKD, A2D and HiddenStates of `fastkd.losses`, or mappings of
        their keys, `name` among them
    teacher: another such model, which is frozen. None where no loss needs one, or where batches
        hold `teacher_ids` and `teacher_log_probs` (B, T, K) beside their `labels` (B, T)
    tokenizer: of both models. Where they have different numbers of logits, as Qwen's sizes do, the
        ids that both have are compared, all of the tokenizer's among them; cross-entropy stays the
        student's own
    rest: what becomes of the mass that those leave out, as in `SparseTeacher`
    verify: whether the student's own loss is compared with the cross-entropy of its states, for
        each new kind of batch (its keys and their ranks)

    With FSDP2 `student` is the module that `fully_shard` was given last.

    The student's own loss says which label a state predicts, and which losses of routers are added
    to it: mixtures of experts keep theirs, as the components `router` and `router_z`, means over
    an update's batches. Decoders read what their own model makes of the labels.

    Token losses are sums over the predicted labels; A2D is one over sentences (normalization
    "map") or query tokens, and teacher maps; hidden states are compared at the encoder's tokens
    and, as they enter the output projection, at the predicted labels. Each is divided by its count
    in the whole update, so none depends on how an update is cut into batches and processes. Logits
    are never held: the losses take last hidden states, output projection, and the scale and offset
    that the model gives its logits.

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
        verify: bool = True,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.losses = _losses_of(losses)
        self.rest = rest
        self.verify = verify
        self._tokenizer = (tokenizer,)  # in a tuple, as it may call itself a module
        self._vocabulary: tuple[tuple[int, int], int | None] | None = None
        self._met: set[Kind] = set()
        self._judged = False
        self._read: Tensor | None = None  # counts of an update that no process has refused
        self._own_start: dict[Kind, bool] = {}
        # A tuple keeps the models' parameters out of this module's own.
        other = None if teacher is None else LanguageModel(teacher, frozen=True)
        self._models = (LanguageModel(student), other)
        refuse_shared(student, teacher)
        if teacher is not None:
            teacher.eval().requires_grad_(False)
            if is_encoder_decoder(teacher) != is_encoder_decoder(student):
                raise InputError(
                    "teacher: expected an encoder-decoder exactly where the student is one"
                )
        else:
            check_listed(self.losses, "a list of ids in each batch", "a teacher model", rest)
        self._listing = teacher is None and bool(self.losses.keys() & {"word_kd", "tie_kd"})
        self._tokens = TokenTerms.of(self.losses, backend)
        self._check_iterations(self.losses.get("tie_kd"))
        self.alignment: AlignToDistill | None = None
        self.hidden: HiddenTerm | None = None
        self._aligned: tuple[AlignmentTerm, ...] = ()
        if teacher is None:
            return
        if a2d := self.losses.get("a2d"):
            term = AlignmentTerm(a2d, _maps(student), _maps(teacher), backend)
            # The term in a tuple: what it learns has the name of `alignment` in checkpoints.
            self._aligned, self.alignment = (term,), term.align
        if hidden := self.losses.get("hidden"):
            self.hidden = HiddenTerm(hidden, self._widths(hidden))

    @property
    def student(self) -> nn.Module:
        return self._models[0].model

    @property
    def teacher(self) -> nn.Module | None:
        return self._models[1].model if self._models[1] else None

    def counts(self, batches: Iterable[Inputs]) -> Tensor:
        """(6,): sizes of this process's batches of an update, to be summed over processes.

        They lie where labels do; of no batches, where the student does.

        New kinds of batches are judged. What one of several processes refuses counts as refused:
        the losses of that update end all of them with its line. Where FSDP2 divides a model, so
        that a pass needs all processes, they judge as often as the one with the most new kinds,
        and none may be without a batch then.

        Not for a loader's workers, which have copies of the models.
        """
        if get_worker_info() is not None:
            raise InputError(
                "counts: called in a worker of a DataLoader; expected the process that trains"
            )
        batches = list(batches)
        try:
            self._meet(batches)
        except InputError as error:
            if not several_processes():
                raise
            tell(str(error))
            return refused(device_of(batches, self._models[0]))
        rows = [counted(self._models[0], batch) for batch in batches]
        if not rows:
            return torch.zeros(REFUSED + 1, device=device_of(batches, self._models[0]))
        return torch.stack(rows).sum(0)

    def forward(
        self,
        model: nn.Module,
        inputs: Inputs,
        counts: Tensor | None = None,
        epoch: int = 1,
        update: int | None = None,
    ) -> Distilled:
        """The losses of one batch, computed within the student's forward pass.

        model: the student, or what wraps it, such as `DistributedDataParallel`
        inputs: what the student is called with, and `labels`
        counts: those of the whole update; None: it is this batch
        epoch, update: from 1; A2D decays by the one, schedules of the losses go by either
        """
        refuse_frozen(self.student)
        if update is None and (name := by_update(self.losses.values())):
            raise InputError(f"update: expected, as {name} changes with it")
        if counts is not None and counts is not self._read and several_processes():
            end_if_told(counts)
            self._read = counts
        self._meet([inputs], together=counts is None)
        student, teacher = self._models
        sizes = counted(student, inputs) if counts is None else counts
        sizes = sizes.to(inputs["labels"].device)
        # Of losses that have other divisors in other processes gradients are not summed early.
        # The kernels take whole weights.
        student.head.by_parts = counts is not None and self._tokens.backend != "triton"
        if teacher is not None:
            teacher.head.by_parts = self._tokens.backend != "triton"
        divisors = replace(as_counts(sizes), epoch=epoch, update=update or 0)
        with contextlib.ExitStack() as stack:
            taps = self.alignment is not None
            call = Call(student, inputs, stack, taps)
            taught: ModelPass | SparseTeacher | None = None
            if teacher is not None:
                asked = self._asked(teacher, inputs)
                with torch.no_grad():
                    told = Call(teacher, asked, stack, taps)
                    taught = told.passed(teacher.model(**_without_columns(asked)))
            elif self._listing:
                taught = self._listed(inputs)
            target = student.predicted(call.labels)
            vocabulary = None if teacher is None else self._compared(student, teacher)

            def losses(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Distilled:
                ours = call.passed(output, within=True)
                passes = Passes(ours, taught, target, IGNORED, vocabulary=vocabulary)
                terms = self._terms(passes, divisors)
                if student.routed:
                    routers = router_losses(student.model, output)
                    terms += [_routed(loss, sizes[0]) for loss in routers]
                return Distilled(*summed(terms))

            # In the forward pass, as wrappers see from its output which parameters were used; and
            # before the hooks of FSDP2, which may divide the student again.
            hook = student.model.register_forward_hook(losses, prepend=True)
            stack.callback(hook.remove)
            distilled: Distilled = model(**_without_columns(inputs))
        return distilled

    def _terms(self, passes: Passes, counts: Counts) -> list[Weighted]:
        terms = [self._tokens(passes, counts)]
        terms += [term(passes, counts) for term in self._aligned]
        if self.hidden is not None:
            terms.append(self.hidden(passes, counts))
        return terms

    def _meet(self, batches: list[Inputs], together: bool = True) -> None:
        """Judges a batch of each kind, and those without labels until one has some.

        together: whether all processes are here
        """
        new = new_kinds(batches, self._met)
        complaint = self._unreadable(batches, new)
        if not self.verify and self._met:
            self._met.update(map(kind_of, new) if complaint is None else ())
            new = []
        elif not self.verify:
            new = [*filter(is_labelled, new), *new][:1]
        if self._divided and together:
            new += batches[:1] * (most(len(new), len(batches), complaint) - len(new))
        elif complaint is not None:
            raise InputError(complaint)
        elif self._divided and self._judged:
            new = []
        refusals = []
        for inputs in new:
            try:
                self._judge(inputs)
            except InputError as error:  # after passes that others need too
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def _unreadable(self, batches: list[Inputs], new: list[Inputs]) -> str | None:
        """What is refused before any pass, of which others may be part."""
        for inputs in batches:
            if inputs.get("labels") is None:
                return f"labels: expected in every batch, not only {', '.join(inputs) or 'nothing'}"
        try:
            for inputs, model in itertools.product(new, filter(None, self._models)):
                model.read(inputs)
            # Batches of one kind have their rows one after the other, or one row alone.
            for inputs, model in itertools.product(batches, filter(None, self._models)):
                model.refuse_packed(inputs)
        except InputError as error:
            return str(error)
        return None

    @property
    def _divided(self) -> bool:
        """Whether passes need all processes."""
        return several_processes() and any(is_sharded(m.model) for m in self._models if m)

    def _judge(self, inputs: Inputs) -> None:
        judge_both(*self._models, inputs, self.verify, self._divided)
        self._judged = True
        if is_labelled(inputs):
            self._met.add(kind_of(inputs))

    def _compared(self, student: LanguageModel, teacher: LanguageModel) -> int | None:
        """Asked again where embeddings were resized."""
        sizes = (student.head.vocabulary, teacher.head.vocabulary)
        if self._vocabulary is None or self._vocabulary[0] != sizes:
            self._vocabulary = sizes, common_vocabulary(student, teacher, self._tokenizer[0])
        return self._vocabulary[1]

    def presume(self, inputs: Inputs) -> None:
        """In place of a comparison with the models' own losses, where tensors have no data."""
        for model in self._models:
            if model is not None:
                presume(model, inputs)
        self._met.add(kind_of(inputs))

    def keep_presumed(self) -> None:
        """After FSDP2 has divided models of which something was presumed."""
        for model in self._models:
            if model is not None:
                model.head.keep()

    def _asked(self, teacher: LanguageModel, inputs: Inputs) -> Inputs:
        """What the teacher is called with: a decoder input made of labels is its own."""
        if "decoder_input_ids" not in inputs:
            return inputs
        kind = kind_of(inputs)
        if kind not in self._own_start:
            labels, given = inputs["labels"], inputs["decoder_input_ids"]
            ours, theirs = (m.decoder_input(labels) for m in (self._models[0], teacher))
            self._own_start[kind] = torch.equal(given, ours) and not torch.equal(ours, theirs)
        if not self._own_start[kind]:
            return inputs
        return {k: v for k, v in inputs.items() if k != "decoder_input_ids"}

    def _widths(self, loss: HiddenStates) -> dict[str, tuple[int, int]]:
        """Of both models' states, by the sides that are compared."""
        assert self.teacher is not None
        sides: dict[str, tuple[int, int]] = {}
        if loss.encoder and is_encoder_decoder(self.student):
            sides["encoder"] = (_encoder_width(self.student), _encoder_width(self.teacher))
        if loss.decoder:
            sides["decoder"] = tuple(m.head.width for m in self._models if m)  # type: ignore[assignment]
        if not sides:
            raise InputError("losses: hidden.encoder: expected a student that has an encoder")
        return sides

    def _listed(self, inputs: Inputs) -> SparseTeacher:
        """What the batch's columns say of the predicted labels."""
        for name in COLUMNS:
            if name not in inputs:
                raise InputError(
                    f"{name}: expected in every batch, as TeacherCollator puts it there, or a "
                    f"teacher: losses has {', '.join(self.losses)}"
                )
        ids, log_probs = (
            self._models[0].predicted(inputs[name]) for name in (TEACHER_IDS, TEACHER_LOG_PROBS)
        )
        return SparseTeacher(ids, log_probs, self.rest)

    def _check_iterations(self, loss: TieKD | None) -> None:
        if loss is None or most_passes(loss) == 1:
            return
        if self.teacher is None or not is_encoder_decoder(self.student):
            raise InputError(
                f"losses: tie_kd.iterations: expected 1, not {most_passes(loss)}, where student "
                "and teacher are not both encoder-decoder models"
            )


def _without_columns(inputs: Inputs) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in COLUMNS}


def _routed(loss: RouterLoss, batches: Tensor) -> Weighted:
    """A batch's share of the mean of the routers' losses, as the model itself weights them."""
    share = loss.value / batches.clamp(min=1)
    return loss.coefficient * share, {loss.name: share.detach()}


def _losses_of(losses: Sequence[Any]) -> dict[str, Any]:
    """The losses that have a weight, by name."""
    parsed = [
        _parsed(given, position) if isinstance(given, Mapping) else given
        for position, given in enumerate(losses)
    ]
    needed = (CrossEntropy, WordKD, TieKD)
    return by_name(parsed, (*needed, A2D, HiddenStates), needed, "Transformers models")


def _maps(model: nn.Module) -> dict[str, int]:
    return ModelTaps(model).maps  # type: ignore[arg-type]


def _encoder_width(model: nn.Module) -> int:
    encoder = model.get_encoder()  # type: ignore[operator]
    return int(encoder.config.hidden_size)


def _parsed(loss: Mapping[str, Any], position: int) -> Any:
    try:
        return TypeAdapter(LossConfig).validate_python(dict(loss))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in ("losses", position, *problem["loc"]))
        raise InputError(f"{key}: {problem['msg']}, not {problem['input']!r}") from None
