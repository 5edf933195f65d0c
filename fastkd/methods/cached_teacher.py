"""A teacher that was asked beforehand: its most likely pieces, read from disk."""

from dataclasses import dataclass
from typing import Any

from fastkd.data.batches import Batch
from fastkd.data.teacher_cache import TeacherCache
from fastkd.functional import SparseTeacher
from fastkd.nn.layout import Layout
from fastkd.terms.listed import check_listed


@dataclass(frozen=True, eq=False)
class CachedTeacher:
    """`cache`, and what becomes of the mass that it leaves out (`SparseTeacher.rest`)."""

    cache: TeacherCache
    rest: str

    def check(self, losses: dict[str, Any]) -> None:
        """Raises InputError for losses that need the teacher itself."""
        what = f"the cache {self.cache.folder}"
        check_listed(losses, what, "teacher.run", self.rest, self.cache.top_k)

    def listed(self, batch: Batch, layout: Layout) -> SparseTeacher:
        """What it says of the batch's target positions, one row each as `layout` has them."""
        ids, log_probs = self.cache.rows(batch.sentence_ids, batch.target.shape[1])
        device = batch.target.device
        return SparseTeacher(
            layout.rows(ids.to(device)), layout.rows(log_probs.to(device)), self.rest
        )
