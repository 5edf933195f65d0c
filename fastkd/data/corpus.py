"""A tokenised parallel corpus in memory-mapped arrays."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, NonNegativeInt

from fastkd.data.tokenizer import Tokenizer, Tokenizers
from fastkd.errors import InputError
from fastkd.files import replaced_folder
from fastkd.reading import map_array, open_file, read_text

FORMAT = 1
SIDES = ("source", "target")

_META = "meta.json"
FILES = (_META, *(f"{side}.{kind}" for side in SIDES for kind in ("offsets", "tokens")))
_BLOCK = 8192  # pairs encoded at once
_CHARACTERS = 1 << 22  # of them, beyond which a block ends: pieces take some fifty times as much
_HASHED_AT_ONCE = 1 << 24  # bytes

Value = TypeVar("Value")


class _Sides(BaseModel, Generic[Value]):
    source: Value
    target: Value


class _Meta(BaseModel):
    """What a corpus's `meta.json` holds."""

    format: int
    languages: tuple[str, str]
    pairs: NonNegativeInt
    tokens: _Sides[NonNegativeInt]
    dtype: _Sides[Literal["<u2", "<u4"]]
    dropped: dict[str, int]  # pairs left out, by reason
    unknown: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)  # source and target lines
    max_length: int | None
    arrays_sha256: str
    tokenizers_sha256: str


@dataclass(frozen=True)
class Side:
    """Token ids of one language, all sentences one after another."""

    tokens: np.ndarray  # (total,) uint16, or uint32 where the vocabulary needs it
    offsets: np.ndarray  # (sentences + 1,) int64
    lengths: np.ndarray  # (sentences,) int32, without end-of-sentence

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of several sentences one after another, and the length of each, int64."""
        starts = self.offsets[ids]
        lengths = self.offsets[ids + 1] - starts
        before = np.cumsum(lengths) - lengths  # (sentences,) where each begins in the result
        places = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
        return self.tokens[places], lengths


class Corpus:
    """Pairs of token-id sequences, opened from a folder that `write_corpus` wrote.

    Nothing but the offsets and lengths is held in memory. Sequences carry no special ids.

    Raises:
        InputError: there is no corpus in the folder, or its files are cut short or changed.
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        """`verify` reads the arrays once and compares their hash."""
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        sides = {side: _open_side(self.folder, side, self.meta) for side in SIDES}
        if verify and _hash_arrays(self.folder) != self.meta.arrays_sha256:
            raise _damaged(self.folder, "its arrays do not match their hash")
        self.sides = (sides["source"], sides["target"])
        self.source_lengths = self.sides[0].lengths
        self.target_lengths = self.sides[1].lengths

    def __len__(self) -> int:
        return len(self.source_lengths)

    def source(self, index: int) -> np.ndarray:
        """Source ids of pair `index`."""
        return self.sides[0][index]

    def target(self, index: int) -> np.ndarray:
        """Target ids of pair `index`."""
        return self.sides[1][index]

    @property
    def languages(self) -> tuple[str, str]:
        return self.meta.languages

    @property
    def dropped(self) -> dict[str, int]:
        """Pairs left out, by reason: "empty" or "too long"."""
        return self.meta.dropped

    @property
    def unknown(self) -> tuple[int, int]:
        """Source and target lines with a character that has no piece."""
        return self.meta.unknown

    @property
    def tokenizers_sha256(self) -> str:
        return self.meta.tokenizers_sha256

    @property
    def sha256(self) -> str:
        """Of the token ids, the sentence bounds and the tokenizers."""
        both = f"{self.meta.arrays_sha256} {self.tokenizers_sha256}"
        return hashlib.sha256(both.encode()).hexdigest()


def write_corpus(
    folder: str | Path,
    pairs: Iterable[tuple[str, str]],
    tokenizers: Tokenizers,
    languages: tuple[str, str],
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda pairs: None,
) -> Corpus:
    """Encodes pairs of sentences into `folder`, block by block.

    With `max_length`, pairs with an empty side or with more pieces than that on one (counting
    end-of-sentence) are left out and counted; without it every pair is kept, so that pair n is
    line n. `progress` is called with the number of pairs read so far. The folder appears, or is
    replaced, only when it is complete.
    """
    folder = Path(folder)
    with replaced_folder(folder, FILES) as new:
        dropped, unknown = _write_arrays(new, pairs, tokenizers, max_length, progress)
        kept = (new / "source.offsets").stat().st_size // 8 - 1
        meta = _Meta.model_validate(
            {
                "format": FORMAT,
                "languages": languages,
                "pairs": kept,
                "tokens": {side: _tokens(new, side) for side in SIDES},
                "dtype": {side: _dtype(getattr(tokenizers, side)).str for side in SIDES},
                "dropped": dropped,
                "unknown": unknown,
                "max_length": max_length,
                "arrays_sha256": _hash_arrays(new),
                "tokenizers_sha256": tokenizers.sha256,
            }
        )
        (new / _META).write_text(meta.model_dump_json(indent=2) + "\n")
    return Corpus(folder, verify=False)


class _SideWriter:
    """Appends sentences to the two files of one side."""

    def __init__(self, folder: Path, side: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = _dtype(tokenizer)
        self.total = 0
        self.unknown = 0  # rows with a piece that is none
        self.tokens: BinaryIO = (folder / f"{side}.tokens").open("wb")
        self.offsets: BinaryIO = (folder / f"{side}.offsets").open("wb")
        np.zeros(1, "<i8").tofile(self.offsets)

    def append(self, rows: Sequence[list[int]]) -> None:
        self.unknown += sum(self.tokenizer.unk_id in row for row in rows)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = itertools.chain.from_iterable(rows)
        np.fromiter(tokens, self.dtype, int(lengths.sum())).tofile(self.tokens)
        (self.total + np.cumsum(lengths)).astype("<i8").tofile(self.offsets)
        self.total += int(lengths.sum())

    def close(self) -> None:
        self.tokens.close()
        self.offsets.close()


def _write_arrays(
    folder: Path,
    pairs: Iterable[tuple[str, str]],
    tokenizers: Tokenizers,
    max_length: int | None,
    progress: Callable[[int], None],
) -> tuple[dict[str, int], list[int]]:
    """Writes the arrays of both sides.

    Returns the pairs left out, by reason, and the lines of each side with unknown characters.
    """
    writers = [_SideWriter(folder, side, getattr(tokenizers, side)) for side in SIDES]
    dropped = {"empty": 0, "too long": 0}
    read = 0
    try:
        for block in _blocks(pairs):
            rows = [
                writer.tokenizer.encode(lines)
                for writer, lines in zip(writers, zip(*block, strict=True), strict=True)
            ]
            if max_length is not None:
                kept = []
                for pair in zip(*rows, strict=True):
                    shorter, longer = sorted(map(len, pair))
                    if shorter == 0:
                        dropped["empty"] += 1
                    elif longer + 1 > max_length:
                        dropped["too long"] += 1
                    else:
                        kept.append(pair)
                rows = [[pair[0] for pair in kept], [pair[1] for pair in kept]]
            for writer, side_rows in zip(writers, rows, strict=True):
                writer.append(side_rows)
            read += len(block)
            progress(read)
    finally:
        for writer in writers:
            writer.close()
    return dropped, [writer.unknown for writer in writers]


def _blocks(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    block: list[tuple[str, str]] = []
    characters = 0
    for pair in pairs:
        block.append(pair)
        characters += len(pair[0]) + len(pair[1])
        if len(block) == _BLOCK or characters > _CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")


def _tokens(folder: Path, side: str) -> int:
    with (folder / f"{side}.offsets").open("rb") as file:
        file.seek(-8, os.SEEK_END)
        return int(np.frombuffer(file.read(8), "<i8")[0])


def _hash_arrays(folder: Path) -> str:
    digest = hashlib.sha256()
    for side in SIDES:
        for kind in ("offsets", "tokens"):
            with open_file(folder / f"{side}.{kind}") as file:
                while block := file.read(_HASHED_AT_ONCE):
                    digest.update(block)
    return digest.hexdigest()


def _read_meta(folder: Path) -> _Meta:
    path = folder / _META
    if not path.is_file():
        raise InputError(f"{folder}: holds no prepared corpus ({_META} is missing)")
    try:
        tree = json.loads(read_text(path))
        version = tree["format"]
        if version == FORMAT:
            return _Meta.model_validate(tree)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, f"{_META} cannot be read") from error
    raise InputError(f"{folder}: prepared in format {version}; expected {FORMAT}: prepare it again")


def _open_side(folder: Path, side: str, meta: _Meta) -> Side:
    dtype, count = getattr(meta.dtype, side), getattr(meta.tokens, side)
    try:
        offsets = np.array(map_array(folder / f"{side}.offsets", "<i8", (meta.pairs + 1,)))
        tokens = map_array(folder / f"{side}.tokens", dtype, (count,))
    except InputError as error:
        raise _damaged(folder, str(error)) from None
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (lengths < 0).any():
        raise _damaged(folder, f"{side}.offsets does not fit {side}.tokens")
    return Side(tokens, offsets, lengths.astype(np.int32))


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(f"{folder}: the prepared corpus is damaged: {reason}; prepare it again")
