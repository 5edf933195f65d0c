"""What a run says while it trains: `log.jsonl`, TensorBoard, and a progress bar."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fastkd.errors import InputError
from fastkd.files import named, write_file


class RunLog:
    """One JSON object a logged step; going on from `step` drops what was written after it.

    Each carries `time`, seconds since 1970; a number that is not finite is written as null.
    Without a path it is silent: of several processes, only the first one reports.
    """

    def __init__(
        self,
        path: Path | None,
        step: int,
        total: int,
        tensorboard: bool = False,
        unvalidated: bool = False,
    ):
        """unvalidated: whether the validation of `step` is still to come, and was not logged"""
        self._file = self._board = None
        self._total = total
        if path is not None:
            _keep_until(path, step, unvalidated)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
            self._board = _summary_writer(path.parent, step) if tensorboard else None
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=2,
            disable=path is None or not console.is_terminal,
        )
        self._bar = self._progress.add_task("training", total=total, completed=step, figures="")

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def advance(self, step: int) -> None:
        self._progress.update(self._bar, completed=step)

    def write(self, record: dict[str, Any]) -> None:
        """`record` has a `step`; its numbers also go to TensorBoard."""
        if self._file:
            with named(Path(self._file.name)):
                self._file.write(_line({**record, "time": round(time.time(), 3)}))
                self._file.flush()
                os.fsync(self._file.fileno())
        if self._board:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, record["step"])

    def figures(self, step: int, text: str) -> None:
        """Beside the bar; where there is no terminal for one, a line of their own."""
        self._progress.update(self._bar, figures=text)
        if not self._progress.console.is_terminal:
            self.say(f"update {step:,} of {self._total:,}: {text}")

    def say(self, text: str) -> None:
        if self._file:
            self._progress.console.print(text, highlight=False, markup=False)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; a half-written last line is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
    return [r for r in records if isinstance(r, dict) and isinstance(r.get("step"), int)]


def _keep_until(path: Path, step: int, unvalidated: bool) -> None:
    records = [record for record in read_log(path) if record["step"] <= step]
    if unvalidated:
        records = [r for r in records if r["step"] < step or "dev_loss" not in r]
    write_file(path, "".join(map(_line, records)).encode())


def _line(record: dict[str, Any]) -> str:
    """JSON, which has no NaN and no infinity."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "training.tensorboard: needs the package tensorboard: pip install 'fastkd[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
