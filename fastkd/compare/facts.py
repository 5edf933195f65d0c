"""What a run's folder says of it, without loading its model."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fastkd.config.losses import A2D
from fastkd.config.tree import Config
from fastkd.errors import InputError
from fastkd.runs.folder import MODEL, RunFolder
from fastkd.runs.scores import bleu_tokenizer_of, read_scores
from fastkd.tensors import count_numbers
from fastkd.terms.alignment import DEFAULT_WEIGHTS
from fastkd.train.log import read_log

_WHOLE = ("teacher", "start", "tokenizer")  # shown in one line
OWN = ("run", "training.seed")  # what differs between the seeds of one method


@dataclasses.dataclass(frozen=True)
class Facts:
    """A run as it stands."""

    folder: RunFolder
    config: Config
    meta: Mapping[str, Any]  # of the last checkpoint; empty where there is none
    log: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> "Facts":
        """Raises InputError where `path` is no run, or its newest checkpoint is damaged."""
        folder = RunFolder.open(path)
        meta = folder.read_meta("last") if folder.checkpoints() else {}
        return cls(folder, folder.config, meta, read_log(folder.log_file))

    @property
    def name(self) -> str:
        return str(self.folder.path)

    @property
    def updates(self) -> int:
        return int(self.meta.get("update", 0))

    @property
    def seconds(self) -> float:
        """Spent on training."""
        return float(self.meta.get("seconds", 0.0))

    @cached_property
    def parameters(self) -> int | None:
        """Numbers that the model has; None before its first checkpoint."""
        if not self.meta:
            return None
        return count_numbers(self.folder.weights_folder("last") / f"{MODEL}.safetensors")

    @cached_property
    def settings(self) -> dict[str, str]:
        """Every key of the configuration with its value; a loss in one line, by its name."""
        return dict(_flat(self.config))

    @cached_property
    def bleu_tokenizer(self) -> str | None:
        """What cut the words of its validations' BLEU; None where there was none."""
        return None if self.best("dev_bleu") is None else bleu_tokenizer_of(self.folder)

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(update, value) of what the log calls `key`."""
        return [(record["step"], record[key]) for record in self.log if _is_number(record.get(key))]

    def best(self, key: str) -> float | None:
        """The `key` of the best checkpoint's validation; None where there was none."""
        at = self.meta.get("best_update")
        found = [value for step, value in self.curve(key) if at is None or step == at]
        return found[-1] if found else None

    def scores(self, split: str) -> list[dict[str, Any]]:
        """What `fastkd score` found of the best checkpoint as it is now, the latest last."""
        best = self.meta.get("best_update")
        wanted = (split, "best", self.updates if best is None else best)
        return [
            entry
            for entry in read_scores(self.folder)
            if (entry.get("split"), entry.get("checkpoint"), entry.get("update")) == wanted
            and all(_is_number(entry.get(key)) for key in ("bleu", "chrf"))
        ]


def find_runs(below: Path) -> Iterator[Path]:
    """The run folders in `below`, itself included, by name; those within runs are not looked at."""
    if (below / "config.yaml").is_file() and (below / "log.jsonl").is_file():
        yield below
        return
    try:
        inside = sorted(each for each in below.iterdir() if each.is_dir() and not each.is_symlink())
    except OSError as error:
        raise InputError(f"{below}: cannot be read: {error.strerror}") from None
    for each in inside:
        if not each.name.startswith("."):
            yield from find_runs(each)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if key in _WHOLE:
        yield key, "-" if value is None else _changed(value)
    elif key == "losses":
        for loss in value:
            if isinstance(loss, A2D) and loss.weight is None:
                loss = dataclasses.replace(loss, weight=DEFAULT_WEIGHTS[loss.normalization])
            yield f"losses.{loss.name}", _changed(loss)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _flat(getattr(value, field.name), f"{key}.{field.name}".lstrip("."))
    else:
        yield key, "-" if value is None else str(value)


def _changed(value: Any) -> str:
    """Its fields that are not at their defaults, in one line; the weight always."""
    if not dataclasses.is_dataclass(value):
        return "-" if value is None else str(value)
    kept = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.name == "weight" or getattr(value, field.name) != field.default
    }
    return ", ".join(f"{name} {_changed(each)}" for name, each in kept.items()) or "as it is"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
