"""Which losses there are, and what a teacher that was asked beforehand can serve of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from fastkd.config.losses import CrossEntropy, TieKD, WordKD
from fastkd.config.schedule import RepeatsSchedule, Schedule
from fastkd.errors import InputError
from fastkd.functional.calls import SERVED, TokenOptions


def by_name(
    losses: Sequence[Any], served: Sequence[Any], needed: Sequence[Any], whose: str
) -> dict[str, Any]:
    """The losses that have a weight, by name.

    served: the classes of loss that may be there; needed: of which at least one must be
    whose: what serves them, for messages

    Raises InputError for another loss, one that is listed twice, and where all needed ones lack.
    """
    found: dict[str, Any] = {}
    classes = tuple(served)
    for position, loss in enumerate(losses):
        if not isinstance(loss, classes):
            name = getattr(loss, "name", repr(loss))
            raise InputError(
                f"losses.{position}: {name} is no loss of {whose}; expected {_names(served)}"
            )
        if loss.name in found:
            raise InputError(f"losses.{position}: {loss.name} is listed twice")
        if loss.weight != 0:
            found[loss.name] = loss
    if not found.keys() & {loss.name for loss in needed}:
        raise InputError(f"losses: expected at least one of {_names(needed)}")
    return found


def check_listed(
    losses: dict[str, Any], what: str, instead: str, rest: str, top_k: int | None = None
) -> None:
    """Raises InputError for losses that need the teacher itself, not its most likely ids.

    what: names the list, for messages; instead: what would serve all losses
    rest: `SparseTeacher.rest`
    top_k: how many ids are listed at each position, where that is known
    """
    for name, loss in losses.items():
        if isinstance(loss, TieKD) and most_passes(loss) > 1:
            raise InputError(
                f"losses: tie_kd.iterations: expected 1, not {most_passes(loss)}, with {what}; "
                f"{instead} serves more"
            )
        if isinstance(loss, TieKD) and loss.rank_weight and top_k and loss.top_k > top_k:
            raise InputError(
                f"losses: tie_kd.top_k: expected at most the {top_k} ids of {what}, "
                f"not {loss.top_k}"
            )
        if isinstance(loss, WordKD):
            form = TokenOptions(0.0, 1.0, divergence=loss.divergence, beta=loss.beta).form
            if form not in SERVED[rest]:
                able = " or ".join(name for name, forms in SERVED.items() if form in forms)
                raise InputError(
                    f"losses: word_kd.divergence: {form} needs rest: {able}, not {rest}, with "
                    f"{what}; {instead} serves it too"
                )
        if not isinstance(loss, CrossEntropy | TieKD | WordKD):
            raise InputError(f"losses: {name} needs {instead}; {what} holds no more than ids")


def scheduled(losses: Iterable[Any], update: int, epoch: int) -> dict[str, float]:
    """By name, such as tie_kd.weight, what changes over training as it is in an update."""
    return {name: value.at(update, epoch) for name, value in _schedules(losses)}


def by_update(losses: Iterable[Any]) -> str | None:
    """The name of a value that changes by update, where there is one."""
    return next((name for name, value in _schedules(losses) if value.by == "update"), None)


def _schedules(losses: Iterable[Any]) -> Iterator[tuple[str, Schedule | RepeatsSchedule]]:
    for loss in losses:
        for field in fields(loss):
            value = getattr(loss, field.name)
            if isinstance(value, Schedule | RepeatsSchedule):
                yield f"{loss.name}.{field.name}", value


def most_passes(loss: TieKD) -> int:
    """Over the whole training."""
    passes = loss.iterations
    return passes.highest if isinstance(passes, RepeatsSchedule) else passes


def _names(losses: Sequence[Any]) -> str:
    return ", ".join(loss.name for loss in losses)
