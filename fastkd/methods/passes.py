"""What the losses of one batch share: one forward pass of the student, one of the teacher."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
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
    taught: Pass | None  # the teacher's, where there is one

    @classmethod
    def over(
        cls, batch: Batch, student: Transformer, teacher: Transformer | None, taps: bool
    ) -> "Passes":
        """Runs the student, and the teacher without gradient, on the gold decoder input."""
        inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = Pass(teacher, teacher(*inputs, taps=taps))
        return cls(batch, Pass(student, student(*inputs, taps=taps)), taught)

    @property
    def teacher(self) -> Pass:
        """The teacher's pass, of an objective that has one."""
        assert self.taught is not None
        return self.taught

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
