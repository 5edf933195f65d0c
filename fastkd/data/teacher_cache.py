"""A teacher's most likely pieces at every target position of a corpus, memory-mapped.

A folder with two arrays and what is known of them:

- `ids`: (rows, top_k) uint16, or uint32 where the vocabulary needs it, the likeliest first; a row
  for each piece of each target sentence in order, and one for its end
- `log_probs`: (rows, top_k) float32 or float16, natural logarithms
- `meta.json`: `format` 2, `corpus_sha256`, `top_k`, `vocabulary`, the arrays' dtypes, what
  `teacher` it was (`teacher_sha256`: of its weights), and `sha256` of both arrays and of the rest

Format 1 has no `vocabulary` and no `sha256`; its values are looked through instead.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fastkd.data.corpus import Corpus
from fastkd.errors import InputError
from fastkd.files import named, replaced_folder
from fastkd.reading import bad_value, map_array, read_text, sha256_of

LOGGER = logging.getLogger(__name__)
_FORMAT = 2
_META, _IDS, _LOG_PROBS = "meta.json", "ids", "log_probs"
_FILES = (_META, _IDS, _LOG_PROBS)
_ANEW = "run: fastkd cache-teacher"
_SLACK = 1e-2  # of a logarithm above 0, by rounding


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
        hashes = self.meta.get("sha256", {})
        self.ids, self.log_probs = (
            map_array(self.folder / name, self.meta[name], shape, hashes.get(name))
            for name in (_IDS, _LOG_PROBS)
        )
        if not hashes:
            self._look_through()

    @property
    def sha256(self) -> str | None:
        """Of what it holds; None where that is not known."""
        known = self.meta.get("sha256", {})
        return known.get(_META) and _digest({name: known[name] for name in (_IDS, _LOG_PROBS)})

    def check_vocabulary(self, size: int) -> None:
        """InputError where an id is not below `size`."""
        if self.meta.get("vocabulary", 0) != size and bad_value(self.ids, 0, size - 1) is not None:
            raise InputError(f"{self.folder / _IDS}: damaged: an id of {size:,} or more; {_ANEW}")

    def _look_through(self) -> None:
        """Refuses what no teacher says, where there are no hashes."""
        LOGGER.warning("%s: of an earlier version, without hashes; %s", self.folder, _ANEW)
        bad = bad_value(self.log_probs, -np.inf, _SLACK)
        if bad is not None:
            raise InputError(f"{self.folder / _LOG_PROBS}: damaged: holds {bad}; {_ANEW}")

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
    """Takes the rows of each sentence, in any order; writes, so that a full disk is an OSError."""

    def __init__(
        self, corpus: Corpus, top_k: int, teacher: str, files: Mapping[str, tuple[IO[bytes], str]]
    ) -> None:
        """files: of `ids` and `log_probs`, with their dtypes"""
        self._first, self._top_k = _first_rows(corpus), top_k
        self._teacher, self._files = teacher, files

    def write(self, sentence: int, ids: Tensor, log_probs: Tensor) -> None:
        """ids and log_probs: (length with end-of-sentence, K)

        Raises InputError where the teacher's log-probabilities are none.
        """
        values = log_probs.numpy()
        bad = bad_value(values, -np.inf, _SLACK)
        if bad is not None:
            raise InputError(
                f"{self._teacher}: its log-probabilities of sentence {sentence + 1:,} hold {bad};"
                " expected numbers up to 0: its weights are damaged, or too large"
            )
        for name, rows in ((_IDS, ids.numpy()), (_LOG_PROBS, values)):
            file, dtype = self._files[name]
            content = np.ascontiguousarray(rows, dtype)
            with named(Path(file.name)):
                file.seek(int(self._first[sentence]) * self._top_k * content.itemsize)
                file.write(content.tobytes())


@contextlib.contextmanager
def writing_cache(
    folder: Path, corpus: Corpus, top_k: int, vocabulary: int, dtype: str, about: dict[str, Any]
) -> Iterator[CacheWriter]:
    """A writer; the folder appears when the block ends without an error.

    about: the `teacher`, a run's folder, and what else is known of it
    """
    kinds = {_IDS: "uint16" if vocabulary <= 1 << 16 else "uint32", _LOG_PROBS: dtype}
    rows = int(_first_rows(corpus)[-1])
    with replaced_folder(folder, _FILES) as new:
        with contextlib.ExitStack() as stack:
            files = {}
            for name, kind in kinds.items():
                file = stack.enter_context(open(new / name, "wb"))
                with named(new / name):
                    os.truncate(file.fileno(), rows * top_k * np.dtype(kind).itemsize)
                files[name] = file, kind
            yield CacheWriter(corpus, top_k, about["teacher"], files)
        meta = {
            "format": _FORMAT,
            "corpus_sha256": corpus.sha256,
            "top_k": top_k,
            "vocabulary": vocabulary,
            **kinds,
            **about,
        }
        hashes = {name: sha256_of(new / name) for name in kinds}
        meta["sha256"] = {**hashes, _META: _digest(meta)}
        (new / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _first_rows(corpus: Corpus) -> np.ndarray:
    """(sentences + 1,): the first row of each sentence; one row a piece and one for the end."""
    return corpus.sides[1].offsets + np.arange(len(corpus) + 1)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / _META
    try:
        meta: dict[str, Any] = json.loads(read_text(path))
        version = meta["format"]
        _ = meta["corpus_sha256"], meta["top_k"], meta[_IDS], meta[_LOG_PROBS]
        if version == _FORMAT:
            hashes = meta["sha256"]
            told = {key: value for key, value in meta.items() if key != "sha256"}
            whole = hashes[_META] == _digest(told) and {_IDS, _LOG_PROBS} <= hashes.keys()
        else:
            whole = type(meta["top_k"]) is int and "sha256" not in meta
    except FileNotFoundError:
        raise InputError(f"teacher.cache: {folder} holds no teacher cache") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: damaged; {_ANEW}") from None
    if version not in (1, _FORMAT):
        raise InputError(f"{path}: written by another version of fastkd")
    if not whole:
        raise InputError(f"{path}: damaged: it does not match its hash; {_ANEW}")
    return meta


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
