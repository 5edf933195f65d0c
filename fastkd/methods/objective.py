"""A student's objective: the weighted sum of the losses that its config lists."""

from typing import Any

from torch import Tensor, nn

from fastkd.config.tree import A2D, Config, CrossEntropy, HiddenStates, ModelConfig, TieKD, WordKD
from fastkd.data.batches import Batch
from fastkd.errors import InputError
from fastkd.methods.alignment_term import AlignmentTerm
from fastkd.methods.hidden_term import HiddenTerm
from fastkd.methods.passes import Components, Counts, Passes
from fastkd.methods.token_terms import TokenTerms
from fastkd.nn.transformer import Transformer


class Objective(nn.Module):
    """Losses over one forward pass of each model; their own parameters train with the student.

    teacher: the model and its configuration; None where no loss needs one
    """

    def __init__(
        self, config: Config, pad_id: int, teacher: tuple[Transformer, ModelConfig] | None = None
    ):
        super().__init__()
        losses = _by_name(config)
        taught = [name for name in losses if name != CrossEntropy.name]
        if taught and teacher is None:
            raise InputError(f"losses: {taught[0]} needs a teacher; expected the key teacher.run")
        backend = config.training.backend
        distillation = [losses[c.name] for c in (WordKD, TieKD) if c.name in losses]
        self.tokens = TokenTerms(losses.get(CrossEntropy.name), distillation, pad_id, backend)
        self.alignment: AlignmentTerm | None = None
        self.hidden: HiddenTerm | None = None
        # A tuple keeps the teacher's parameters out of this module's own.
        self._teacher: tuple[Transformer | None] = (None,)
        if teacher is None or not taught:
            return
        model, model_config = teacher
        self._teacher = (model.eval().requires_grad_(False),)
        if A2D.name in losses:
            self.alignment = AlignmentTerm(losses[A2D.name], config.model, model_config, backend)
        if HiddenStates.name in losses:
            widths = config.model.width, model_config.width
            self.hidden = HiddenTerm(losses[HiddenStates.name], pad_id, *widths)

    @property
    def teacher(self) -> Transformer | None:
        return self._teacher[0]

    def forward(
        self, student: Transformer, batch: Batch, counts: Counts, epoch: int
    ) -> tuple[Tensor, Components]:
        """The piece's share of the update's loss, and its unweighted components, detached."""
        passes = Passes.over(batch, student, self.teacher, taps=self.alignment is not None)
        loss, components = self.tokens(passes, counts)
        if self.alignment is not None:
            term, parts = self.alignment(passes, counts, epoch)
            loss, components = loss + term, components | parts
        if self.hidden is not None:
            term, parts = self.hidden(passes, counts)
            loss, components = loss + term, components | parts
        return loss, components


def _by_name(config: Config) -> dict[str, Any]:
    losses: dict[str, Any] = {}
    for position, loss in enumerate(config.losses):
        if loss.name in losses:
            raise InputError(f"losses.{position}: {loss.name} is listed twice")
        if loss.weight != 0:
            losses[loss.name] = loss
    if not losses.keys() & {CrossEntropy.name, WordKD.name, TieKD.name}:
        raise InputError("losses: expected at least one of cross_entropy, word_kd, tie_kd")
    return losses
