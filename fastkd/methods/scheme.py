"""What differs between kinds of models in training: their inputs, and losses on target tokens."""

from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from fastkd.config.tree import Config, ModelConfig
from fastkd.data.batches import Batch
from fastkd.data.corpus import Corpus
from fastkd.terms.passes import Counts, Weighted


class Scheme(Protocol):
    """How one kind of model is trained. Calling it gives its losses over the passes it made."""

    losses: ClassVar[tuple[Any, ...]]  # classes of the losses' configurations
    needed: ClassVar[tuple[Any, ...]]  # at least one of which must be there

    def __init__(self, config: Config, losses: dict[str, Any], pad_id: int) -> None: ...

    @property
    def moves_teacher(self) -> bool:
        """Whether the teacher's weights change, so that a checkpoint must hold them."""

    def check_teacher(self, teacher: ModelConfig) -> None:
        """Raises InputError where the losses cannot be taught by such a teacher."""

    def begin(self, student: Any, teacher: Any) -> None:
        """What happens to a new student before its first update."""

    def before_update(self, student: Any, teacher: Any) -> None:
        """What happens before each update."""

    def counts(self, corpus: Corpus, ids: np.ndarray, update: int) -> Counts:
        """Sizes of an update over the sentences `ids`."""

    def passes(self, student: Any, teacher: Any, batch: Batch, counts: Counts, taps: bool) -> Any:
        """Both models' passes over a piece of an update: a `Passes`."""

    def __call__(self, passes: Any, counts: Counts) -> Weighted:
        """The piece's share of the update's loss, and its unweighted components, detached."""

    def validation_loss(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """Sum of cross-entropies over the predicted pieces of `batch`, and their number."""
