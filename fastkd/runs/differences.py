"""In what a run would go on otherwise than before, key by key."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fastkd.config.tree import Config
from fastkd.errors import InputError

_LASTING = ("model", "teacher", "losses", "data")
_CHANGING = ("training", "decoding")
# A run may go on with others of these, and no figure of it depends on them.
_FREE = ("updates", "epochs", "log_every", "save_every", "keep_last", "device", "tensorboard")


def refuse_others(old: Config, new: Config, path: Path, places: Collection[str]) -> None:
    """InputError for what the run at `path` cannot go on with.

    places: keys that may change, as of a corpus that was moved
    """
    for part in _LASTING:
        found = _changes(getattr(old, part), getattr(new, part), part)
        if changed := [text for key, text in found if key not in places]:
            raise InputError(
                f"{path}: holds a run with other settings under {part!r} ({', '.join(changed)});"
                " give this config another run folder, or delete that one"
            )
    if bool(old.training.ema) != bool(new.training.ema):
        raise InputError(
            f"training.ema: the run has {old.training.ema:g}, and cannot go on with"
            f" {new.training.ema:g}: expected an average in both or in neither"
        )


def differences(old: Config, new: Config, places: Collection[str]) -> list[str]:
    """With what the run would go on otherwise, of what it may."""
    free = {f"training.{key}" for key in _FREE}
    return [
        text
        for part in (*_LASTING, *_CHANGING)
        for key, text in _changes(getattr(old, part), getattr(new, part), part)
        if key not in free and (part in _CHANGING or key in places)
    ]


def _changes(old: Any, new: Any, name: str) -> Iterator[tuple[str, str]]:
    """Each key below `name` whose values differ, and how that is told."""
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for field in dataclasses.fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            yield from _changes(before, after, f"{name}.{field.name}")
    elif name == "losses" and _names(old) == _names(new):
        for one, other in zip(old, new, strict=True):
            yield from _changes(one, other, f"losses.{one.name}")
    elif old != new:
        values = (_names(value) if name == "losses" else value for value in (old, new))
        yield name, f"{name} {' → '.join(map(_shown, values))}"


def _names(losses: Any) -> list[str]:
    return [loss.name for loss in losses]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return "another" if dataclasses.is_dataclass(value) else str(value)
