"""How an autoregressive model is trained: gold prefixes, and a loss on each target token."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fastkd.config.losses import CrossEntropy, TieKD, WordKD
from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
from fastkd.functional import linear_token_distillation_loss
from fastkd.methods.cached_teacher import CachedTeacher
from fastkd.methods.passes import counts_of, gold_passes
from fastkd.nn.transformer import Transformer
from fastkd.terms.passes import Counts, Passes, Weighted
from fastkd.terms.tokens import TokenTerms


class CausalScheme:
    """The losses of `TokenTerms` over one pass of each model on the gold decoder input."""

    losses: ClassVar[tuple[Any, ...]] = (CrossEntropy, WordKD, TieKD)
    needed: ClassVar[tuple[Any, ...]] = losses

    def __init__(self, config: Config, losses: dict[str, Any], pad_id: int) -> None:
        self.backend = config.training.backend
        self.pad_id = pad_id
        self.terms = TokenTerms.of(losses, config.training.backend)

    @property
    def moves_teacher(self) -> bool:
        return False

    def counts(self, corpus: Corpus, ids: np.ndarray, update: int) -> Counts:
        return counts_of(corpus, ids)

    def passes(
        self,
        student: Transformer,
        teacher: Transformer | CachedTeacher | None,
        batch: Batch,
        counts: Counts,
        taps: bool,
    ) -> Passes:
        return gold_passes(batch, student, teacher, self.pad_id, taps)

    def __call__(self, passes: Passes, counts: Counts) -> Weighted:
        return self.terms(passes, counts)

    def check_teacher(self, teacher: ModelConfig) -> None:
        """Any teacher's logits will do."""

    def begin(self, student: Transformer, teacher: Transformer | None) -> None:
        """A new student keeps its random weights."""

    def before_update(self, student: Transformer, teacher: Transformer | None) -> None:
        """The teacher stays as it is."""

    @torch.no_grad()
    def validation_loss(self, model: Transformer, batch: Batch) -> tuple[Tensor, int]:
        """The sum of cross-entropies of the target tokens, and their number."""
        output = model(
            batch.source, batch.source_lengths, batch.decoder_input, batch.target_lengths
        )
        losses = linear_token_distillation_loss(
            output.rows,
            model.output_weight,
            target=output.layout.rows(batch.target),
            student_bias=model.output_bias,
            ce_weight=1.0,
            kd_weight=0.0,
            ignore_index=self.pad_id,
            backend=self.backend,
        )
        return losses.ce, batch.target_tokens
