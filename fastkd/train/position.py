"""How far a run has come."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Position:
    """With the weights and the optimizer's state, all that resuming needs."""

    update: int = 0
    epoch: int = 1
    batch: int = 0  # of the epoch, the next one to train on
    best: float | None = None  # of the early metric, higher is better
    best_update: int | None = None
    stale: int = 0  # validations since the best
    skipped: int = 0  # updates in a row whose loss or gradient was not finite
    seconds: float = 0.0  # spent training

    def after(self, epoch: int, batch: int, batches: int, seconds: float) -> "Position":
        """The position after one more update, on `batch` of the `batches` of `epoch`."""
        ended = batch + 1 == batches
        return replace(
            self,
            update=self.update + 1,
            epoch=epoch + ended,
            batch=0 if ended else batch + 1,
            seconds=self.seconds + seconds,
        )

    def with_result(self, result: float) -> "Position":
        """The position after a validation with this value of the early metric."""
        if self.best is None or result > self.best:
            return replace(self, best=result, best_update=self.update, stale=0)
        return replace(self, stale=self.stale + 1)
