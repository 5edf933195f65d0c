"""What a run is trained by, in the words of `fastkd.palette`."""

from collections.abc import Iterable
from pathlib import Path

from fastkd.config.tree import Config
from fastkd.palette import PRECEDENCE
from fastkd.runs.sequences import note_of


def kind_of(config: Config, teachers: Iterable[str] = ()) -> str:
    """teachers: run folders that others learn from"""
    if Path(config.run).resolve() in {Path(each).resolve() for each in teachers}:
        return "teacher"
    names = {loss.name for loss in config.losses}
    for name, kind in PRECEDENCE.items():
        if name in names:
            return kind
    return "sequence KD" if note_of(Path(config.data.train)).is_file() else "alone"
