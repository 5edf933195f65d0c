"""A teacher's most likely pieces at every target position of a corpus, memory-mapped."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkd.data.corpus import Corpus
from fastkd.errors import InputError
from fastkd.files import replaced_folder

_FORMAT = 1
_META, _IDS, _LOG_PROBS = "meta.json", "ids", "log_probs"


class TeacherCache:
    """`top_k` ids and log-probabilities of each target position of `corpus`, end included.

    Raises InputError where the folder holds no cache, a damaged one, or that of another corpus or
    tokenizer.
    """

    def __init__(self, folder: str | Path, corpus: Corpus) -> None:
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        if self.meta["corpus_sha256"] != corpus.sha256:
            raise InputError(
                f"teacher.cache: {folder} was made from another corpus or tokenizer than "
                f"{corpus.folder}; run: fastkd cache-teacher"
            )
        self.top_k: int = self.meta["top_k"]
        self._first = _first_rows(corpus)
        shape = (int(self._first[-1]), self.top_k)
        self.ids = _open(self.folder / _IDS, self.meta["ids"], shape)
        self.log_probs = _open(self.folder / _LOG_PROBS, self.meta["log_probs"], shape)

    def rows(self, sentences: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """ids (B, time, K) int64 and log_probs (B, time, K) of whole sentences.

        Positions beyond a sentence hold id 0 and −inf.
        """
        ids = np.zeros((len(sentences), time, self.top_k), np.int64)
        log_probs = np.full(ids.shape, -np.inf, np.float32)
        for row, sentence in enumerate(sentences.tolist()):
            first, end = self._first[sentence], self._first[sentence + 1]
            ids[row, : end - first] = self.ids[first:end]
            log_probs[row, : end - first] = self.log_probs[first:end]
        return torch.from_numpy(ids), torch.from_numpy(log_probs)


class CacheWriter:
    """Takes the rows of each sentence, in any order."""

    def __init__(self, corpus: Corpus, ids: np.ndarray, log_probs: np.ndarray) -> None:
        self._first = _first_rows(corpus)
        self.ids, self.log_probs = ids, log_probs

    def write(self, sentence: int, ids: Tensor, log_probs: Tensor) -> None:
        """ids and log_probs: (length with end-of-sentence, K)"""
        rows = slice(self._first[sentence], self._first[sentence + 1])
        self.ids[rows] = ids.numpy()
        self.log_probs[rows] = log_probs.numpy()


@contextlib.contextmanager
def writing_cache(
    folder: Path, corpus: Corpus, top_k: int, vocabulary: int, dtype: str, about: dict[str, Any]
) -> Iterator[CacheWriter]:
    """A writer; the folder appears when the block ends without an error."""
    kinds = {_IDS: "uint16" if vocabulary <= 1 << 16 else "uint32", _LOG_PROBS: dtype}
    shape = (int(_first_rows(corpus)[-1]), top_k)
    with replaced_folder(folder, (_META, _IDS, _LOG_PROBS)) as new:
        arrays = [np.memmap(new / name, kind, "w+", shape=shape) for name, kind in kinds.items()]
        yield CacheWriter(corpus, *arrays)
        for array in arrays:
            array.flush()
        meta = {"format": _FORMAT, "corpus_sha256": corpus.sha256, "top_k": top_k, **kinds, **about}
        (new / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _first_rows(corpus: Corpus) -> np.ndarray:
    """(sentences + 1,): the first row of each sentence; one row a piece and one for the end."""
    return corpus.sides[1].offsets + np.arange(len(corpus) + 1)


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        known = meta["format"] == _FORMAT
        _ = meta["corpus_sha256"], meta["top_k"], meta[_IDS], meta[_LOG_PROBS]
    except OSError:
        raise InputError(f"teacher.cache: {folder} holds no teacher cache") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / _META}: damaged; run: fastkd cache-teacher") from None
    if not known:
        raise InputError(f"{folder / _META}: written by another version of fastkd")
    return meta


def _open(path: Path, kind: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        expected = shape[0] * shape[1] * np.dtype(kind).itemsize
        if path.stat().st_size != expected:
            raise InputError(f"{path}: damaged: expected {expected:,} bytes")
        return np.memmap(path, kind, "r", shape=shape)
    except (OSError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
