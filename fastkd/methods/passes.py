"""What the losses of one batch share: one forward pass of the student, one of the teacher."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fastkd.data.batches import Batch
from fastkd.nn.transformer import TransformerOutput


@dataclass(frozen=True)
class Counts:
    """Sizes of a whole update, over all its pieces and devices, that losses are divided by."""

    sentences: int
    source_tokens: int  # end-of-sentence included
    target_tokens: int


@dataclass
class Passes:
    """Both models' passes over the gold input; `again` decodes on another input."""

    batch: Batch
    student_model: nn.Module
    teacher_model: nn.Module | None
    taps: bool
    student: TransformerOutput
    teacher: TransformerOutput | None

    @classmethod
    def over(
        cls, batch: Batch, student: nn.Module, teacher: nn.Module | None, taps: bool
    ) -> "Passes":
        """Runs the student, and the teacher without gradient, on the gold decoder input."""
        inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(*inputs, taps=taps)
        return cls(batch, student, teacher, taps, student(*inputs, taps=taps), taught)

    @cached_property
    def target(self) -> Tensor:
        """The target ids, one a row of the decoder's states: (N,)."""
        return self.student.layout.rows(self.batch.target)

    def again(self, decoder_input: Tensor) -> tuple[Tensor, Tensor]:
        """Last states (N, width) of both models on `decoder_input`; encoders are not rerun."""
        assert self.teacher_model is not None and self.teacher is not None
        lengths = self.batch.target_lengths
        with torch.no_grad():
            taught = self.teacher_model.decode(decoder_input, self.teacher.encoded, lengths)
        student = self.student_model.decode(decoder_input, self.student.encoded, lengths)
        return student.rows, taught.rows
