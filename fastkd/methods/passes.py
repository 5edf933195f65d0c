"""Our models as the losses see them: passes over a batch, and the sizes of an update."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
from fastkd.functional import SparseTeacher
from fastkd.methods.cached_teacher import CachedTeacher
from fastkd.nn.transformer import Transformer, TransformerOutput
from fastkd.taps import AttentionTaps
from fastkd.terms.passes import Counts, Passes, Projection


@dataclass(frozen=True, eq=False)
class ModelPass:
    """One model on one decoder input; a `fastkd.terms.passes.Pass` with one state a row."""

    model: Transformer
    batch: Batch
    output: TransformerOutput

    @property
    def states(self) -> Tensor:
        return self.output.rows

    @property
    def encoder_states(self) -> Tensor:
        return self.output.encoded.rows

    @property
    def encoder_mask(self) -> Tensor:
        return self.output.encoded.layout.rows(self.batch.source) != self.model.pad_id

    @property
    def target(self) -> Tensor:
        """The target ids, one a row of the states: (N,)."""
        return self.output.layout.rows(self.batch.target)

    @property
    def projection(self) -> Projection:
        return Projection(self.model.output_weight, self.model.output_bias)

    @property
    def taps(self) -> AttentionTaps:
        assert self.output.taps is not None
        return self.output.taps

    def on(self, decoder_input: Tensor) -> "ModelPass":
        """The decoder on other ids, (B, Tt); the encoder is not rerun."""
        lengths = self.batch.target_lengths
        output = self.model.decode(decoder_input, self.output.encoded, lengths)
        return ModelPass(self.model, self.batch, output)

    def again(self, prediction: Tensor) -> "ModelPass":
        """The decoder on the start symbol, then the prediction (N,) but its last id."""
        batch, pad_id = self.batch, self.model.pad_id
        predicted = self.output.layout.pad(prediction)  # (B, Tt)
        shifted = torch.cat([batch.decoder_input[:, :1], predicted[:, :-1]], dim=1)
        return self.on(shifted.masked_fill(batch.target == pad_id, pad_id))


def gold_passes(
    batch: Batch,
    student: Transformer,
    teacher: Transformer | CachedTeacher | None,
    pad_id: int,
    taps: bool,
) -> Passes:
    """Runs the student, and the teacher without gradient, on the gold decoder input."""
    inputs = (batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths)
    taught: ModelPass | SparseTeacher | None = None
    if isinstance(teacher, Transformer):
        with torch.no_grad():
            taught = ModelPass(teacher, batch, teacher(*inputs, taps=taps))
    passed = ModelPass(student, batch, student(*inputs, taps=taps))
    if isinstance(teacher, CachedTeacher):
        taught = teacher.listed(batch, passed.output.layout)
    return Passes(passed, taught, passed.target, pad_id)


def counts_of(corpus: Corpus, ids: np.ndarray) -> Counts:
    """Sizes of an update over these sentences of the corpus; ends of sentence count."""
    return Counts(
        sentences=len(ids),
        source_tokens=int(corpus.source_lengths[ids].sum()) + len(ids),
        target_tokens=int(corpus.target_lengths[ids].sum()) + len(ids),
    )
