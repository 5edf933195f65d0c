"""What the losses of one batch share: one forward pass of the student, one of the teacher."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
from fastkd.functional import SparseTeacher
from fastkd.methods.cached_teacher import CachedTeacher
from fastkd.nn.transformer import Transformer, TransformerOutput

Components = dict[str, Tensor]  # losses by name, unweighted and detached


@dataclass(frozen=True)
class Counts:
    """Sizes of a whole update, over all its pieces and devices, that losses are divided by."""

    sentences: int
    source_tokens: int  # end-of-sentence included
    target_tokens: int
    masked: int = 0  # of a masked model's target
    replaced: int = 0  # by self-correction
    update: int = 0  # which one it is, for random choices

    @classmethod
    def of(cls, corpus: Corpus, ids: np.ndarray) -> "Counts":
        """Of an update over these sentences of the corpus."""
        return cls(
            sentences=len(ids),
            source_tokens=int(corpus.source_lengths[ids].sum()) + len(ids),
            target_tokens=int(corpus.target_lengths[ids].sum()) + len(ids),
        )


@dataclass(frozen=True, eq=False)
class Pass:
    """One model on one decoder input."""

    model: Transformer
    output: TransformerOutput

    def again(self, decoder_input: Tensor, lengths: Tensor) -> "Pass":
        """The decoder on another input; the encoder is not rerun."""
        return Pass(self.model, self.model.decode(decoder_input, self.output.encoded, lengths))


@dataclass(frozen=True, eq=False)
class Passes:
    """Both models on one decoder input: the gold one, or the student's own prediction."""

    batch: Batch
    student: Pass
    taught: Pass | SparseTeacher | None  # what the teacher makes of it, where there is one

    @classmethod
    def over(
        cls,
        batch: Batch,
        student: Transformer,
        teacher: Transformer | CachedTeacher | None,
        taps: bool,
    ) -> "Passes":
        """Runs the student, and the teacher without gradient, on the gold decoder input."""
        inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
        taught: Pass | SparseTeacher | None = None
        if isinstance(teacher, Transformer):
            with torch.no_grad():
                taught = Pass(teacher, teacher(*inputs, taps=taps))
        output = student(*inputs, taps=taps)
        if isinstance(teacher, CachedTeacher):
            taught = teacher.listed(batch, output.layout)
        return cls(batch, Pass(student, output), taught)

    @property
    def teacher(self) -> Pass:
        """The teacher's pass, of an objective whose teacher is a model."""
        assert isinstance(self.taught, Pass)
        return self.taught

    def teaching(self) -> dict[str, Any]:
        """The teacher as `linear_token_distillation_loss` takes it."""
        if isinstance(self.taught, SparseTeacher):
            return {"teacher_hidden": self.taught}
        return {
            "teacher_hidden": self.teacher.output.rows,
            "teacher_weight": self.teacher.model.output_weight,
            "teacher_bias": self.teacher.model.output_bias,
        }

    @cached_property
    def target(self) -> Tensor:
        """The target ids, one a row of the decoder's states: (N,)."""
        return self.student.output.layout.rows(self.batch.target)

    def again(self, decoder_input: Tensor) -> "Passes":
        """Both decoders on `decoder_input`; encoders are not rerun."""
        lengths = self.batch.target_lengths
        with torch.no_grad():
            taught = self.teacher.again(decoder_input, lengths)
        return Passes(self.batch, self.student.again(decoder_input, lengths), taught)
