"""How far a run has come."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Position:
    """With the weights and the optimizer's state, all that resuming needs."""

    update: int = 0
    epoch: int = 1
    batch: int = 0  # of the epoch, the next one to train on
    best: float | None = None  # of the early metric, higher is better
    best_loss: float | None = None  # of dev, where that was
    best_update: int | None = None
    stale: int = 0  # validations since the best
    skipped: int = 0  # updates in a row whose loss or gradient was not finite
    seconds: float = 0.0  # spent training
    unvalidated: bool = False  # whether the validation of this update is still to come
    bleu_tokenizer: str | None = None  # of every validation, chosen at the first one

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

    def measured_by(self, bleu_tokenizer: str) -> "Position":
        """The position with this tokenizer of BLEU; a best found with another one counts no more.

        One that is not known, of before it was written down, is taken to be the same.
        """
        if self.bleu_tokenizer in (None, bleu_tokenizer):
            return replace(self, bleu_tokenizer=bleu_tokenizer)
        return replace(self, bleu_tokenizer=bleu_tokenizer, best=None, best_loss=None)

    def with_result(self, result: float, loss: float) -> "Position":
        """The position after a validation with this value of the early metric and loss of dev.

        Of equal results the one with the lower loss is the best, and of equal ones of these the
        later, which is no progress yet. What is not a number is below every number.
        """
        new, old = _rank(result, -loss), _rank(self.best, _negated(self.best_loss))
        done = replace(self, unvalidated=False)
        if math.isnan(result) or new < old:
            return replace(done, stale=self.stale + 1)
        stale = self.stale + 1 if new == old else 0
        return replace(done, best=result, best_loss=loss, best_update=self.update, stale=stale)


def _rank(result: float | None, negated_loss: float | None) -> tuple[float, float]:
    return _known(result), _known(negated_loss)


def _known(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _negated(value: float | None) -> float | None:
    return None if value is None else -value
