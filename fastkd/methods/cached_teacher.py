"""A teacher that was asked beforehand: its most likely pieces, read from disk."""

from dataclasses import dataclass
from typing import Any

from fastkd.config.tree import TieKD, WordKD
from fastkd.data.batches import Batch
from fastkd.data.teacher_cache import TeacherCache
from fastkd.errors import InputError
from fastkd.functional import SparseTeacher
from fastkd.nn.layout import Layout


@dataclass(frozen=True, eq=False)
class CachedTeacher:
    """`cache`, and what becomes of the mass that it leaves out (`SparseTeacher.rest`)."""

    cache: TeacherCache
    rest: str

    def check(self, losses: dict[str, Any]) -> None:
        """Raises InputError for losses that need the teacher itself."""
        for name, loss in losses.items():
            if isinstance(loss, TieKD) and loss.iterations > 1:
                raise InputError(
                    f"losses: tie_kd.iterations: a cached teacher serves 1, not {loss.iterations};"
                    " expected teacher.run for more"
                )
            if isinstance(loss, TieKD) and loss.rank_weight and loss.top_k > self.cache.top_k:
                raise InputError(
                    f"losses: tie_kd.top_k: expected at most the {self.cache.top_k} ids that"
                    f" {self.cache.folder} lists, not {loss.top_k}"
                )
            if name != "cross_entropy" and not isinstance(loss, TieKD | WordKD):
                raise InputError(
                    f"losses: {name} needs teacher.run; a cache holds no more than ids"
                )

    def listed(self, batch: Batch, layout: Layout) -> SparseTeacher:
        """What it says of the batch's target positions, one row each as `layout` has them."""
        ids, log_probs = self.cache.rows(batch.sentence_ids, batch.target.shape[1])
        device = batch.target.device
        return SparseTeacher(
            layout.rows(ids.to(device)), layout.rows(log_probs.to(device)), self.rest
        )
