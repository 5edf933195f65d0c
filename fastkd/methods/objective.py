"""What a model is trained by: the weighted sum of the losses that its config lists."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastkd.config.losses import A2D, CrossEntropy, HiddenStates, Length, MaskedCrossEntropy
from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
from fastkd.errors import InputError
from fastkd.methods.cached_teacher import CachedTeacher
from fastkd.methods.causal import CausalScheme
from fastkd.methods.masked import MaskedScheme
from fastkd.methods.scheme import Scheme
from fastkd.nn.transformer import Transformer
from fastkd.terms.alignment import AlignmentTerm
from fastkd.terms.hidden import HiddenTerm
from fastkd.terms.listed import by_name, scheduled
from fastkd.terms.passes import Counts, Weighted, summed

# By model.kind: what the models are run on, and the losses on target tokens.
SCHEMES: dict[str, type[Scheme]] = {"transformer": CausalScheme, "cmlm": MaskedScheme}
_UNTAUGHT = {loss.name for loss in (CrossEntropy, MaskedCrossEntropy, Length)}


class Objective(nn.Module):
    """Losses over shared passes of each model; their own parameters train with the student.

    The scheme of the model's kind makes the passes and has the losses on target tokens;
    attention alignment and hidden states are the same for every kind.

    teacher: the model and its configuration, or what was cached of it; None where no loss needs one

    Raises InputError for losses that do not fit the model, each other or the teacher.
    """

    def __init__(
        self,
        config: Config,
        pad_id: int,
        teacher: tuple[Transformer, ModelConfig] | CachedTeacher | None = None,
    ):
        super().__init__()
        losses = _losses_of(config)
        self._losses = tuple(losses.values())
        taught = [name for name in losses if name not in _UNTAUGHT]
        if taught and teacher is None:
            raise InputError(f"losses: {taught[0]} needs a teacher; expected the key teacher")
        self.scheme: Scheme = SCHEMES[config.model.kind](config, losses, pad_id)
        self.alignment: AlignmentTerm | None = None
        self.hidden: HiddenTerm | None = None
        self.teacher_heads: int | None = None  # of a layer; None of one that is cached
        # A tuple keeps the teacher's parameters out of this module's own.
        self._teacher: tuple[Transformer | CachedTeacher | None] = (None,)
        if teacher is None or not taught:
            return
        if isinstance(teacher, CachedTeacher):
            teacher.check(losses)
            self._teacher = (teacher,)
            return
        model, model_config = teacher
        if model_config.kind != config.model.kind:
            raise InputError(
                f"teacher.run: expected a model of kind {config.model.kind} as the student, "
                f"not {model_config.kind}"
            )
        self.scheme.check_teacher(model_config)
        self.teacher_heads = model_config.heads
        self._teacher = (model.eval().requires_grad_(False),)
        backend = config.training.backend
        if a2d := losses.get(A2D.name):
            self.alignment = AlignmentTerm(a2d, _maps(config.model), _maps(model_config), backend)
        if hidden := losses.get(HiddenStates.name):
            widths = config.model.width, model_config.width
            sides = {"encoder": hidden.encoder, "decoder": hidden.decoder}
            self.hidden = HiddenTerm(hidden, {side: widths for side in sides if sides[side]})

    @property
    def teacher(self) -> Transformer | CachedTeacher | None:
        return self._teacher[0]

    def forward(self, student: Transformer, batch: Batch, counts: Counts, epoch: int) -> Weighted:
        """The piece's share of the update's loss, and its unweighted components, detached."""
        counts = replace(counts, epoch=epoch)
        taps = self.alignment is not None
        passes = self.scheme.passes(student, self.teacher, batch, counts, taps)
        terms = [self.scheme(passes, counts)]
        if self.alignment is not None:
            terms.append(self.alignment(passes, counts))
        if self.hidden is not None:
            terms.append(self.hidden(passes, counts))
        return summed(terms)

    def counts(self, corpus: Corpus, ids: np.ndarray, update: int) -> Counts:
        """Sizes of an update over the sentences `ids`, whoever computes which of them."""
        return replace(self.scheme.counts(corpus, ids, update), update=update)

    def begin(self, student: Transformer) -> None:
        """To be called on a new student, before its first update."""
        self.scheme.begin(student, self.teacher)

    def before_update(self, student: Transformer) -> None:
        """To be called before each update."""
        self.scheme.before_update(student, self.teacher)

    def scheduled(self, update: int, epoch: int) -> dict[str, float]:
        """By name, such as tie_kd.weight, what changes over training as it is in an update."""
        return scheduled(self._losses, update, epoch)

    def mixes(self) -> dict[str, Tensor]:
        """By kind of attention, how A2D mixes heads by now (`fastkd.terms.alignment.mix_of`)."""
        return {} if self.alignment is None else self.alignment.mixes()

    def moving_tensors(self) -> dict[str, Tensor]:
        """What updates change beside the parameters: a teacher that follows its student.

        By name, not copies; resuming needs their values.
        """
        if not isinstance(self.teacher, Transformer) or not self.scheme.moves_teacher:
            return {}
        return {f"teacher.{name}": p.detach() for name, p in self.teacher.named_parameters()}

    def validation_loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, int]:
        """Sum of cross-entropies over the predicted pieces of `batch`, and their number."""
        return self.scheme.validation_loss(model, batch)


def _losses_of(config: Config) -> dict[str, Any]:
    scheme, whose = SCHEMES[config.model.kind], f"model.kind {config.model.kind}"
    return by_name(config.losses, (*scheme.losses, A2D, HiddenStates), scheme.needed, whose)


def _maps(model: ModelConfig) -> dict[str, int]:
    decoder = model.decoder_layers * model.heads
    return {"encoder": model.encoder_layers * model.heads, "decoder": decoder, "cross": decoder}
