"""What A2D has learned to mix, as a run's log tells it at each validation."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastkd.train.sharding import whole

KEY = "heads"
_TEACHER = "teacher_heads"  # of a layer
Mixes = dict[str, Tensor]  # by kind of attention, (teacher maps, student maps)


def listed(mixes: Mapping[str, Tensor], teacher_heads: int | None) -> dict[str, Any]:
    """Of a record of the log, with four decimals; nothing where nothing is mixed.

    teacher_heads: of a layer of the teacher, which the run's other files do not tell

    Every process must ask, where weights are divided over several.
    """
    found = {kind: whole(mix).float().cpu().tolist() for kind, mix in mixes.items()}
    rounded = {
        kind: [[round(share, 4) for share in row] for row in rows] for kind, rows in found.items()
    }
    return {KEY: rounded, _TEACHER: teacher_heads} if rounded else {}


def read(log: Iterable[Mapping[str, Any]]) -> dict[int, Mixes]:
    """By update, what the records of a log tell; damaged ones are left out."""
    found = {}
    for record in log:
        try:
            mixes = {kind: torch.tensor(rows) for kind, rows in record[KEY].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if mixes and all(mix.dim() == 2 and mix.numel() for mix in mixes.values()):
            found[int(record["step"])] = mixes
    return found


def logged_teacher_heads(log: Iterable[Mapping[str, Any]]) -> int | None:
    """Heads of a layer of the teacher; None where no record tells, as in runs of before."""
    found = [record[_TEACHER] for record in log if isinstance(record.get(_TEACHER), int)]
    return found[-1] if found and found[-1] > 0 else None
