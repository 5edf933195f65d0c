"""A run's folder: its configuration, tokenizer, log and checkpoints."""

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from fastkd.config.load import dump_config, parse, validate
from fastkd.config.tree import Config
from fastkd.data.prepare import Prepared
from fastkd.data.tokenizer import FOLDER, Tokenizers
from fastkd.errors import Forbidden, InputError, RunFailed
from fastkd.files import clear_leftovers, drop_folder, foreign_file, writable, write_file
from fastkd.nn.build import build_model
from fastkd.nn.transformer import Transformer
from fastkd.reading import read_text
from fastkd.runs.checkpoint import (
    CHECKPOINT_FILES,
    META,
    read_group,
    read_meta,
    write_checkpoint,
    write_meta,
)
from fastkd.runs.differences import differences, refuse_others
from fastkd.runs.lock import RunLock
from fastkd.runs.manifest import NAME, Manifest, Reads
from fastkd.runs.room import check_room
from fastkd.runs.weights import load_weights

LOGGER = logging.getLogger(__name__)
MODEL, OBJECTIVE, STATE = "model", "objective", "state"
_CHECKPOINT = re.compile(r"[0-9]{8,}")
_TRIES = 20
_FILES = ("config.yaml", "log.jsonl", NAME)
_WRITTEN = (*_FILES, "tokenizer", "checkpoints", "average")
# Keys that are all in what `record` writes, and hardly in what people do.
_RESOLVED = {"run", "data", "tokenizer", "model", "training", "decoding", "start", "teacher"}
SELECTIONS = ("best", "last", "average")

Read = TypeVar("Read")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    folder: Path
    meta: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Weights:
    """A model's weights as a checkpoint or an average has them."""

    folder: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    group: str = MODEL

    @property
    def sha256(self) -> str:
        """Of the file."""
        return str(self.meta["sha256"][f"{self.group}.safetensors"])


class RunFolder:
    """`config.yaml`, `tokenizer/`, `log.jsonl`, `checkpoints/<update>/`, `average/`, `run.json`.

    Many may read it, also while it is trained; one at a time trains, from `create` to `close`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = RunLock(self.path)
        self._reads: Reads | None = None  # what it is trained on

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run; InputError where `path` is none."""
        run = cls(path)
        if not run.config_file.is_file():
            raise InputError(f"{path}: {_no_run(run.path)}")
        return run

    @classmethod
    def create(
        cls,
        config: Config,
        tokenizers: Tokenizers,
        corpora: dict[str, str] | None = None,
        teacher: str | None = None,
    ) -> "RunFolder":
        """The folder of a run about to start or to go on, with what it needs to be used.

        corpora: hashes of what it is trained and validated on, by split
        teacher: the hash of its teacher's weights or cache

        It is this process's own until `close`. Raises InputError where it is another's, or holds
        what is no run, or a run of another model, tokenizer, corpus or teacher; other settings and
        versions are told.
        """
        run = cls(config.run)
        run._refuse_foreign()
        run._reads = Reads(tokenizers.sha256, corpora or {}, teacher)
        run._lock.take()
        clear_leftovers(run.path)
        clear_leftovers(run.path / "checkpoints")
        manifest = Manifest.read(run.path)
        if run.config_file.is_file() and run.checkpoints():
            places = manifest.places if manifest else ()
            refuse_others(run.config, config, run.path, places)
            _refuse_other_tokenizer(run, tokenizers, manifest)
            if manifest is None:
                LOGGER.warning(
                    "%s: has no %s, as before version 0.2: whether its corpus is the same as"
                    " before is not known",
                    *(run.path, NAME),
                )
            else:
                manifest.check_reads(run._reads, run.path)
            others = manifest.other_versions() if manifest else []
            if others := [*differences(run.config, config, places), *others]:
                LOGGER.warning("%s: goes on with %s", run.path, ", ".join(others))
        with writable(run.path):
            if manifest is None and not run.config_file.exists():
                Manifest.of(config, run._reads).write(run.path)
            tokenizers.save(run.path)
        if not run.config_file.is_file():
            run.record(config)
        return run

    def record(self, config: Config) -> None:
        """Writes what the run is trained with from now on."""
        self._lock.check()
        with writable(self.path):
            write_file(self.config_file, dump_config(config).encode())
            if self._reads is not None:
                Manifest.of(config, self._reads).write(self.path)

    def _refuse_foreign(self) -> None:
        """InputError where what would be written is there, and was written by something else."""
        path = self.path / NAME
        there = [name for name in _WRITTEN if os.path.lexists(self.path / name)]
        for name in there:
            file = self.path / name
            if name in _FILES and not (file.is_file() and not file.is_symlink()):
                raise InputError(f"{file}: expected a file of a run, and no link")
        if there and not path.is_file() and not self._of_version_1():
            raise InputError(
                f"{self.path}: is no run's folder, and {there[0]} in it would be replaced;"
                " expected a new or an empty folder, or that of a run"
            )

    def _of_version_1(self) -> bool:
        """Whether a folder without a manifest is a run's: its config is a resolved one."""
        try:
            tree = parse(read_text(self.config_file))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            # What is left of a damaged run, as only that has checkpoints.
            return any((folder / META).is_file() for folder in self.checkpoints())
        return isinstance(tree, dict) and tree.keys() >= _RESOLVED

    def close(self) -> None:
        """Lets others write to the folder; so does the end of the process, whatever ends it."""
        self._lock.release()

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
        config = validate(tree, str(self.config_file))
        manifest = Manifest.read(self.path)
        if manifest is not None:
            manifest.check_model(config, self.config_file)
        return config

    @property
    def tokenizers(self) -> Tokenizers:
        tokenizers = Tokenizers.load(self.path)
        manifest = Manifest.read(self.path)
        if manifest is not None and manifest.tokenizers_sha256 != tokenizers.sha256:
            raise InputError(f"{self.path / FOLDER}: damaged or changed: not what {NAME} tells of")
        return tokenizers

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

        Raises RunFailed where the folder was deleted or replaced since `create`.
        """
        self._lock.check()
        write_checkpoint(self.checkpoint(update), groups, meta)
        self._drop(keep)

    def revise(self, update: int, meta: dict[str, Any], keep: int | None) -> None:
        """Gives a checkpoint another `meta`, as one that has been validated; then drops as above"""
        self._lock.check()
        folder = self.checkpoint(update)
        write_meta(folder, meta, read_meta(folder)["sha256"])
        self._drop(keep)

    def _drop(self, keep: int | None) -> None:
        """What holds more than a checkpoint does, or is a link or file, is somebody's and stays."""
        folders = self.checkpoints()
        if keep is None:
            return
        wanted = {*folders[-max(keep, 2) :], *map(self._best_of, folders[-2:])}
        for folder in folders:
            if folder.is_symlink() or not folder.is_dir():
                continue
            if folder not in wanted:
                if foreign_file(folder, CHECKPOINT_FILES) is None:
                    drop_folder(folder)
            elif folder not in folders[-2:]:
                (folder / f"{STATE}.safetensors").unlink(missing_ok=True)

    def newest_whole(self, groups: Sequence[str]) -> Saved | None:
        """The newest checkpoint that is not damaged; None where there is no checkpoint at all.

        Raises InputError where all are damaged, or one may not be read.
        """
        folders = self.checkpoints()
        for folder in reversed(folders):
            try:
                meta = read_meta(folder)
                read = {group: read_group(folder, group, meta=meta) for group in groups}
                return Saved(folder, meta, read)
            except Forbidden:
                raise  # it may be whole, and would be replaced
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
        self,
        selection: str = "best",
        device: torch.device | str = "cpu",
        weights: Weights | None = None,
    ) -> Transformer:
        """The run's model in eval mode, with its `best`, `last` or `average` weights.

        weights: these, where they are read already
        """
        config, tokenizers = self.config.model, self.tokenizers
        check_room(config, tokenizers, f"{self.config_file}: model")
        model = build_model(config, tokenizers)
        weights = weights or self.read_weights(selection)
        load_weights(model, weights.tensors, weights.folder)
        return model.to(device).eval()

    def read_weights(self, selection: str = "best", group: str = MODEL) -> Weights:
        """The `best`, `last` or `average` weights of the model, or of another group."""
        return self.read_groups(selection, [group])[group]

    def read_groups(self, selection: str, groups: Sequence[str]) -> dict[str, Weights]:
        """Several groups of one checkpoint, also where the run is trained meanwhile."""

        def read(place: Path) -> dict[str, Weights]:
            meta = read_meta(place)
            found = {name: read_group(place, name, meta=meta) for name in groups}
            return {name: Weights(place, meta, tensors, name) for name, tensors in found.items()}

        return self._settled(selection, read)

    def read_meta(self, selection: str = "best") -> dict[str, Any]:
        """What is known of the `best`, `last` or `average` weights."""
        return self._settled(selection, read_meta)

    def _settled(self, selection: str, read: Callable[[Path], Read]) -> Read:
        """What is read in the folder of a selection.

        Where the run is being trained, the folder may be dropped or replaced before all of it is
        read; then what is the best or the last by now.
        """
        for _ in range(_TRIES):
            folder = self.weights_folder(selection)
            before = _inode(folder)
            try:
                found = read(folder)
            except InputError:
                if before == _inode(folder) and folder == self.weights_folder(selection):
                    raise
                continue
            if before == _inode(folder):  # else of files of two folders, or of one that is gone
                return found
        raise RunFailed(f"{self.path}: is being replaced faster than it can be read")


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _no_run(path: Path) -> str:
    """What `path` is instead, and what may have been meant."""
    if path.is_dir():
        return "not a run folder (no config.yaml in it)"
    if path.exists():
        return "a file; expected a run's folder, which a config names under run"
    with contextlib.suppress(OSError):
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()]
        if near := difflib.get_close_matches(path.name, beside, 1):
            return f"no such run; did you mean {path.parent / near[0]}?"
    return "no such run; expected a folder that fastkd train has made"


def _refuse_other_tokenizer(
    run: RunFolder, tokenizers: Tokenizers, manifest: Manifest | None
) -> None:
    try:
        own = manifest.tokenizers_sha256 if manifest else run.tokenizers.sha256
    except InputError:
        return  # lost or damaged; the corpus's takes its place
    if own != tokenizers.sha256:
        raise InputError(
            f"{run.path}: holds a run with another tokenizer than the prepared corpus;"
            " give this config another run folder, or delete that one"
        )
