"""The mean of several checkpoints' weights."""

from pathlib import Path

from torch import Tensor

from fastkd.errors import InputError
from fastkd.runs.checkpoint import read_group, read_meta, write_checkpoint
from fastkd.runs.folder import MODEL, RunFolder


def average_checkpoints(run: RunFolder, last: int | None = None) -> list[Path]:
    """Writes the mean of the newest `last` checkpoints (None: all that are kept) as `average`."""
    while True:
        folders = run.checkpoints()[-(last or 0) :]
        if not folders:
            raise InputError(f"{run.path}: has no checkpoint yet")
        if last and len(folders) < last:
            raise InputError(f"{run.path}: has {len(folders)} checkpoints, fewer than {last}")
        try:
            before = [_hash(folder) for folder in folders]
            mean = _mean(folders)
            if before == [_hash(folder) for folder in folders]:
                break  # else of the run before and of one that was begun anew
        except InputError:
            if folders == run.checkpoints()[-(last or 0) :]:
                raise  # else the run's training has dropped one of them
    write_checkpoint(
        run.path / "average", {MODEL: mean}, {"checkpoints": [folder.name for folder in folders]}
    )
    return folders


def _hash(folder: Path) -> str | None:
    """Of its model; what else is told of it may change, as it is validated."""
    found: str | None = read_meta(folder)["sha256"].get(f"{MODEL}.safetensors")
    return found


def _mean(folders: list[Path]) -> dict[str, Tensor]:
    total = {name: t.double() for name, t in read_group(folders[0], MODEL).items()}
    for folder in folders[1:]:
        for name, tensor in read_group(folder, MODEL).items():
            total[name] += tensor
    return {name: (tensor / len(folders)).float() for name, tensor in total.items()}
