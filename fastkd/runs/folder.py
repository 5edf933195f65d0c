"""A run's folder: its configuration, tokenizer, log and checkpoints."""

import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from fastkd.config.load import dump_config, parse, validate
from fastkd.config.tree import Config
from fastkd.data.prepare import Prepared
from fastkd.data.tokenizer import Tokenizers
from fastkd.errors import InputError, RunFailed
from fastkd.files import drop_folder, foreign_file, writable, write_file
from fastkd.nn.build import build_model
from fastkd.nn.transformer import Transformer
from fastkd.reading import read_text
from fastkd.runs.checkpoint import (
    CHECKPOINT_FILES,
    read_group,
    read_meta,
    write_checkpoint,
    write_meta,
)
from fastkd.runs.room import check_room
from fastkd.runs.weights import load_weights

LOGGER = logging.getLogger(__name__)
MODEL, OBJECTIVE, STATE = "model", "objective", "state"
_CHECKPOINT = re.compile(r"[0-9]{8,}")
_TRIES = 20
SELECTIONS = ("best", "last", "average")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    folder: Path
    meta: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]


class RunFolder:
    """`config.yaml`, `tokenizer/`, `log.jsonl`, `checkpoints/<update>/`, `average/` and `.lock`.

    Many may read it, also while it is trained; one at a time trains, from `create` to `close`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock", timeout=0)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run; InputError where `path` is none."""
        run = cls(path)
        if not run.config_file.is_file():
            raise InputError(f"{path}: not a run folder (no config.yaml in it)")
        return run

    @classmethod
    def create(cls, config: Config, tokenizers: Tokenizers) -> "RunFolder":
        """The folder of a run about to start or to go on, with what it needs to be used.

        It is this process's own until `close`; InputError where it is another's.
        """
        run = cls(config.run)
        run._take()
        if run.config_file.is_file() and run.checkpoints():
            _refuse_other_model(run.config, config, run.path)
            _refuse_other_tokenizer(run, tokenizers)
        with writable(run.path):
            tokenizers.save(run.path)
        if not run.config_file.is_file():
            run.record(config)
        return run

    def record(self, config: Config) -> None:
        """Writes what the run is trained with from now on."""
        with writable(self.path):
            write_file(self.config_file, dump_config(config).encode())

    def close(self) -> None:
        """Lets others write to the folder; so does the end of the process, whatever ends it."""
        self._lock.release()

    def _take(self) -> None:
        with writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise InputError(
                    f"{self.path}: another process trains this run; wait for it, or give this"
                    " config another run folder"
                ) from None

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def config(self) -> Config:
        try:
            tree = parse(read_text(self.config_file))
        except (yaml.YAMLError, UnicodeDecodeError):
            raise InputError(f"{self.config_file}: not valid YAML") from None
        except OSError as error:
            raise InputError(f"{self.config_file}: cannot be read: {error.strerror}") from None
        return validate(tree, str(self.config_file))

    @property
    def tokenizers(self) -> Tokenizers:
        return Tokenizers.load(self.path)

    def check_corpus(self, prepared: Prepared, key: str = "") -> None:
        """InputError where a corpus has another tokenizer; `key` names the run in the complaint."""
        if self.tokenizers.sha256 != prepared.tokenizers.sha256:
            raise InputError(
                f"{key}{self.path}: has another tokenizer than {prepared.folder};"
                f" prepare the corpus with tokenizer: {self.path}"
            )

    def checkpoint(self, update: int) -> Path:
        return self.path / "checkpoints" / f"{update:08d}"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("[0-9]*")
        return sorted(folder for folder in found if _CHECKPOINT.fullmatch(folder.name))

    def save(
        self,
        update: int,
        groups: dict[str, dict[str, Tensor]],
        meta: dict[str, Any],
        keep: int | None,
    ) -> None:
        """Writes a checkpoint; then drops the ones beyond the newest `keep` and the best ones.

        keep: None drops none
        """
        write_checkpoint(self.checkpoint(update), groups, meta)
        self._drop(keep)

    def revise(self, update: int, meta: dict[str, Any], keep: int | None) -> None:
        """Gives a checkpoint another `meta`, as one that has been validated; then drops as above"""
        folder = self.checkpoint(update)
        write_meta(folder, meta, read_meta(folder)["sha256"])
        self._drop(keep)

    def _drop(self, keep: int | None) -> None:
        """What holds more than a checkpoint does is somebody's, and stays."""
        folders = self.checkpoints()
        if keep is None:
            return
        wanted = {*folders[-max(keep, 2) :], *map(self._best_of, folders[-2:])}
        for folder in folders:
            if folder not in wanted:
                if foreign_file(folder, CHECKPOINT_FILES) is None:
                    drop_folder(folder)
            elif folder not in folders[-2:]:
                (folder / f"{STATE}.safetensors").unlink(missing_ok=True)

    def newest_whole(self, groups: Sequence[str]) -> Saved | None:
        """The newest checkpoint that is not damaged; None where there is no checkpoint at all.

        Raises InputError where all are damaged.
        """
        folders = self.checkpoints()
        for folder in reversed(folders):
            try:
                read = {group: read_group(folder, group) for group in groups}
                return Saved(folder, read_meta(folder), read)
            except InputError as damage:
                LOGGER.warning("%s; going back to the checkpoint before", damage)
        if folders:
            raise InputError(
                f"{folders[0].parent}: no checkpoint is whole; delete them to begin anew"
            )
        return None

    def newest_without_skips(self) -> Path | None:
        """The newest checkpoint before updates began to be skipped."""
        for folder in reversed(self.checkpoints()):
            with contextlib.suppress(InputError):
                if not read_meta(folder).get("skipped"):
                    return folder
        return None

    def weights_folder(self, selection: str) -> Path:
        """The folder that holds the `best`, `last` or `average` weights."""
        if selection not in SELECTIONS:
            raise InputError(f"checkpoint: expected one of {', '.join(SELECTIONS)}: {selection!r}")
        if selection == "average":
            if not (self.path / "average").is_dir():
                raise InputError(f"{self.path}: has no average; run: fastkd average {self.path}")
            return self.path / "average"
        if not self.checkpoints():
            raise InputError(f"{self.path}: has no checkpoint yet")
        newest = self.checkpoints()[-1]
        return newest if selection == "last" else self._best_of(newest)

    def _best_of(self, folder: Path) -> Path:
        """The best checkpoint when `folder` was written; itself where that is not known."""
        try:
            best = read_meta(folder).get("best_update")
        except InputError:
            return folder
        return folder if best is None else self.checkpoint(best)

    def load_model(
        self, selection: str = "best", device: torch.device | str = "cpu"
    ) -> Transformer:
        """The run's model in eval mode, with its `best`, `last` or `average` weights."""
        config, tokenizers = self.config.model, self.tokenizers
        check_room(config, tokenizers, f"{self.config_file}: model")
        model = build_model(config, tokenizers)
        folder, tensors = self.read_weights(selection)
        load_weights(model, tensors, folder)
        return model.to(device).eval()

    def read_weights(self, selection: str = "best") -> tuple[Path, dict[str, Tensor]]:
        """The folder of the `best`, `last` or `average` weights, and these, by name.

        Where the run is being trained, the folder may be dropped or replaced before it is read;
        then what is the best or the last by now.
        """
        for _ in range(_TRIES):
            folder = self.weights_folder(selection)
            before = _inode(folder)
            try:
                return folder, read_group(folder, MODEL)
            except InputError:
                if before == _inode(folder) and folder == self.weights_folder(selection):
                    raise
        raise RunFailed(f"{self.path}: is being replaced faster than it can be read")


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _refuse_other_model(old: Config, new: Config, path: Path) -> None:
    for key in ("model", "teacher", "losses", "data"):
        if getattr(old, key) != getattr(new, key):
            raise InputError(
                f"{path}: holds a run with other settings under {key!r};"
                " give this config another run folder, or delete that one"
            )


def _refuse_other_tokenizer(run: RunFolder, tokenizers: Tokenizers) -> None:
    try:
        own = run.tokenizers
    except InputError:
        return  # lost or damaged; the corpus's takes its place
    if own.sha256 != tokenizers.sha256:
        raise InputError(
            f"{run.path}: holds a run with another tokenizer than the prepared corpus;"
            " give this config another run folder, or delete that one"
        )
