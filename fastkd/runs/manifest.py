"""`run.json`: what a run was made of, so that it goes on with the same or says what differs.

Runs of version 0.1 have none; what is not known of them is told, and they go on.
"""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fastkd import __version__
from fastkd.config.load import dump_config
from fastkd.config.tree import Config
from fastkd.errors import InputError
from fastkd.files import write_file
from fastkd.reading import read_text

FORMAT = 1
NAME = "run.json"
_TEXTS = ("data.train", "data.dev", "data.test", "data.prepared")
_TEACHERS = ("teacher.run", "teacher.cache")


@dataclass(frozen=True)
class Reads:
    """Hashes of what a run is trained on."""

    tokenizers: str
    corpora: dict[str, str]  # by split
    teacher: str | None = None  # of its weights or its cache; None: there is none


@dataclass(frozen=True)
class Manifest:
    """Hashes of what a run reads, its model, and the versions that wrote it last."""

    tokenizers_sha256: str
    corpora_sha256: dict[str, str]  # by split; none where the run was imported
    model: dict[str, Any]
    config_sha256: str
    fastkd: str
    commit: str | None  # of a checkout
    torch: str
    python: str
    teacher_sha256: str | None = None  # of weights or a cache; None: none, or not known
    format: int = FORMAT

    @classmethod
    def of(cls, config: Config, reads: Reads) -> "Manifest":
        return cls(
            tokenizers_sha256=reads.tokenizers,
            corpora_sha256=reads.corpora,
            teacher_sha256=reads.teacher,
            model=_plain(config.model),
            config_sha256=hashlib.sha256(dump_config(config).encode()).hexdigest(),
            **_versions(),
        )

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """A run's; None where it has none. Raises InputError where it is damaged."""
        path = folder / NAME
        try:
            tree = json.loads(read_text(path))
            version = tree["format"]
            if version == FORMAT:
                return cls(**tree)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path}: damaged; delete it to go on without it") from None
        raise InputError(f"{path}: written by another version of fastkd")

    def write(self, folder: Path) -> None:
        write_file(folder / NAME, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @property
    def places(self) -> tuple[str, ...]:
        """Keys of paths to what is known by its hash, wherever it lies by now."""
        texts = _TEXTS if {"train", "dev"} <= self.corpora_sha256.keys() else ()
        return texts + (() if self.teacher_sha256 is None else _TEACHERS)

    def other_versions(self) -> list[str]:
        """What else the run goes on with, of what computes."""
        return [
            f"{name} {before} → {now}"
            for name, now in _versions().items()
            if (before := getattr(self, name)) != now
        ]

    def check_model(self, config: Config, source: Path) -> None:
        """InputError where the model of a config is not the run's."""
        found = _plain(config.model)
        for key, value in self.model.items():
            if found.get(key, value) != value:
                raise InputError(
                    f"{source}: model.{key}: damaged or changed: expected {value!r}, as {NAME} has"
                    f" it, not {found[key]!r}"
                )

    def check_reads(self, reads: Reads, source: Path) -> None:
        """InputError where a run would go on with another corpus or teacher."""
        if self.teacher_sha256 not in (None, reads.teacher):
            raise InputError(
                f"{source}: was trained with another teacher than there is by now, one with other"
                " weights or another cache; give this config another run folder"
            )
        for split, found in reads.corpora.items():
            if self.corpora_sha256.get(split, found) != found:
                raise InputError(
                    f"{source}: was trained with another {split} corpus than the prepared one;"
                    " give this config another run folder, or prepare the former text"
                )


def _plain(part: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    tree: dict[str, Any] = json.loads(json.dumps(asdict(part)))
    return tree


def _versions() -> dict[str, Any]:
    return {
        "fastkd": __version__,
        "commit": _commit(),
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
    }


def _commit() -> str | None:
    """Of the checkout that this file is in."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
