"""`scores.json` of a run: what `fastkd score` found, one entry a split, checkpoint and search."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastkd.decode.score import tokenizer_of
from fastkd.errors import InputError
from fastkd.files import locked, writable, write_file
from fastkd.reading import read_text
from fastkd.runs.checkpoint import read_meta
from fastkd.runs.folder import RunFolder

FILE = "scores.json"
# What two entries of one run differ in; a new one takes the place of an equal one.
_KEYS = ("split", "checkpoint", "engine", "compute_type", "decoding", "bleu_signature")


@dataclass(frozen=True)
class Entry:
    """Scores of one split."""

    split: str
    checkpoint: str  # best, last or average
    update: int | None  # of the checkpoint; None of an average
    sentences: int
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    decoding: dict[str, Any]  # the settings of the search
    engine: str
    compute_type: str
    text_sha256: str  # of the split's sentences and references


def sha256_of_text(sources: list[str], references: list[str]) -> str:
    """Of what was translated and what it was held against."""
    return hashlib.sha256(json.dumps([sources, references]).encode()).hexdigest()


def scores_file(run: RunFolder) -> Path:
    return run.path / FILE


def read_scores(run: RunFolder) -> list[dict[str, Any]]:
    """The entries of a run; none where it was never scored.

    Raises InputError where the file is damaged.
    """
    path = scores_file(run)
    try:
        entries = json.loads(read_text(path))["scores"]
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it to score anew") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise InputError(f"{path}: damaged; delete it to score anew")
    return entries


def record_scores(run: RunFolder, entry: Entry) -> None:
    """Adds an entry, in the place of one of the same split, checkpoint and search.

    Raises InputError where the run's folder cannot be written.
    """
    new = asdict(entry)
    with writable(run.path), locked(run.path):  # else of two that add one would be lost
        others = [e for e in read_scores(run) if any(e.get(key) != new[key] for key in _KEYS)]
        content = json.dumps({"scores": [*others, new]}, indent=2) + "\n"
        write_file(scores_file(run), content.encode())


def bleu_tokenizer_of(run: RunFolder) -> str:
    """What cuts BLEU's words for a run.

    The configured one; else that of the run's validations, so that scores compare with its log;
    else the target language's own.
    """
    config = run.config
    if config.training.bleu_tokenizer is not None:
        return config.training.bleu_tokenizer
    for folder in reversed(run.checkpoints()):
        try:
            found = read_meta(folder).get("bleu_tokenizer")
        except InputError:
            continue
        if isinstance(found, str):
            return found
        break
    return tokenizer_of(config.data.target)
