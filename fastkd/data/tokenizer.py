"""Sentencepiece tokenizers: one for both languages, or one for each."""

import contextlib
import hashlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece

from fastkd.config.tree import TokenizerConfig
from fastkd.data.text import read_lines, sample_evenly
from fastkd.errors import InputError
from fastkd.files import write_file
from fastkd.reading import read_bytes

LOGGER = logging.getLogger(__name__)
PAD, UNK, BOS, EOS, MASK = range(5)
MASK_PIECE = "<mask>"
LARGEST_MODEL = 1 << 28  # bytes
FOLDER = "tokenizer"  # within a run folder or a prepared corpus

# Fixed, or the model would depend on the machine: each thread sums its own share of the counts.
_TRAINER_THREADS = 16
_LONGEST_LINE = 4192  # bytes, beyond which sentencepiece leaves a line out without a word
_FEW = 16  # lines that are cut one after another
_RESERVED = str.maketrans("\0\u2585", "  ")  # which it leaves out too, the second with its line
_LINE_BREAKS = ("<0x0A>", "<0x0D>")
_ONE_LINE = str.maketrans("\n\r", "  ")  # pieces may hold them too, where the text learned from did


class Tokenizer:
    """A sentencepiece model with pad 0, unknown 1, begin 2, end 3 and mask 4.

    Raises:
        InputError: the bytes are no sentencepiece model, or its special ids are others.
    """

    pad_id, unk_id, bos_id, eos_id, mask_id = PAD, UNK, BOS, EOS, MASK
    special_ids = (PAD, UNK, BOS, EOS, MASK)

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"{name}: not a sentencepiece model") from error
        self.size: int = self._processor.vocab_size()
        processor = self._processor
        found = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if (*found, processor.piece_to_id(MASK_PIECE)) != (PAD, UNK, BOS, EOS, MASK):
            raise InputError(
                f"{name}: special pieces at other ids; expected <pad> 0, <unk> 1, <s> 2, </s> 3 "
                f"and {MASK_PIECE} 4, as `fastkd prepare` trains them"
            )

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a model file."""
        return cls(_bytes_of(Path(path)), str(path))

    @classmethod
    def adopt(cls, path: str | Path) -> "Tokenizer":
        """Reads any sentencepiece model; one with other special ids is given ours before its own.

        Raises InputError where the file is no such model.
        """
        model = _bytes_of(Path(path))
        try:
            return cls(model, str(path))
        except InputError:
            processor = sentencepiece.SentencePieceProcessor()
            try:
                processor.load_from_serialized_proto(model)
            except RuntimeError:
                raise InputError(f"{path}: not a sentencepiece model") from None
        from fastkd.data.sentencepieces import with_special_ids

        return cls(with_special_ids(model), str(path))

    @property
    def never_text(self) -> tuple[int, ...]:
        """Ids that no translation may hold: pad, begin, mask and, of bytes, line breaks."""
        pieces = (self._processor.piece_to_id(piece) for piece in _LINE_BREAKS)
        return (PAD, BOS, MASK, *(index for index in pieces if index != UNK))

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, without begin or end."""
        rows: list[list[int]]
        if len(lines) <= _FEW:  # threads take longer to begin
            rows = [self._processor.encode(line, out_type=int) for line in lines]
        else:
            rows = self._processor.encode(list(lines), out_type=int, num_threads=_encoder_threads())
        return rows

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Text of each row of ids; pad, begin, end and mask are dropped.

        It is one line whatever the ids, and has no space at its ends.
        """
        texts = (self._processor.decode([int(i) for i in row]) for row in rows)
        return [text.translate(_ONE_LINE).strip(" ") for text in texts]

    def piece(self, index: int) -> str:
        """The text of one id as sentencepiece writes it."""
        return str(self._processor.id_to_piece(index))

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.model,)


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of both sides; the same object twice where the vocabulary is joint."""

    source: Tokenizer
    target: Tokenizer

    @property
    def joint(self) -> bool:
        return self.source is self.target

    @property
    def sha256(self) -> str:
        """Of both models; equal where two runs can share token ids."""
        both = f"{self.source.sha256} {self.target.sha256}"
        return hashlib.sha256(both.encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the models into `folder/tokenizer`."""
        inside = Path(folder) / FOLDER
        inside.mkdir(parents=True, exist_ok=True)
        models = {"source": self.source, "target": self.target}
        if self.joint:
            models = {"joint": self.source}
        for side in ("joint", "source", "target"):
            path = inside / f"{side}.model"
            if side not in models:
                path.unlink(missing_ok=True)
                continue
            write_file(path, models[side].model)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizers":
        """Reads them from a run folder, a prepared corpus, or a plain sentencepiece model's file.

        Raises:
            InputError: there are none, or they are damaged.
        """
        if Path(folder).is_file():
            tokenizer = Tokenizer.adopt(folder)
            return cls(tokenizer, tokenizer)
        inside = Path(folder) / FOLDER
        joint = inside / "joint.model"
        if joint.is_file():
            tokenizer = Tokenizer.load(joint)
            return cls(tokenizer, tokenizer)
        if not (inside / "source.model").is_file():
            raise InputError(
                f"{folder}: holds no tokenizer; expected the folder of a run or of a prepared "
                f"corpus, with {FOLDER}/joint.model or {FOLDER}/source.model and target.model, "
                "or the file of a sentencepiece model"
            )
        return cls(Tokenizer.load(inside / "source.model"), Tokenizer.load(inside / "target.model"))


def train_tokenizers(
    config: TokenizerConfig,
    source: Path,
    target: Path,
    pairs: int,
    progress: Callable[[str], None] = lambda side: None,
) -> Tokenizers:
    """Trains them on evenly spread lines of two text files of `pairs` lines each.

    The same text and config give the same model, whatever the number of cores. `progress` is
    called with "joint", or "source" and "target", as each begins.

    Raises:
        InputError: the text is too small for the vocabulary, or has too many characters for it.
    """

    def sampled(path: Path) -> Iterable[str]:
        return sample_evenly(read_lines(path), pairs, config.sample)

    if config.joint:
        progress("joint")
        both = (line for path in (source, target) for line in sampled(path))
        tokenizer = train_tokenizer(config, both, f"{source} and {target}")
        return Tokenizers(tokenizer, tokenizer)
    progress("source")
    own = replace(config, normalization=config.source_normalization or config.normalization)
    own = replace(own, source_normalization=None)
    first = train_tokenizer(own, sampled(source), str(source))
    progress("target")
    return Tokenizers(first, train_tokenizer(config, sampled(target), str(target)))


def train_tokenizer(config: TokenizerConfig, lines: Iterable[str], name: str) -> Tokenizer:
    """Trains one model on `lines`; `name` says in errors where they are from."""
    model = io.BytesIO()
    feed = _Feed(lines)
    try:
        with _normalization(config.normalization) as rules:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(feed),
                model_writer=model,
                vocab_size=config.vocabulary,
                model_type=config.model,
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                max_sentence_length=_LONGEST_LINE,
                pad_id=PAD,
                unk_id=UNK,
                bos_id=BOS,
                eos_id=EOS,
                control_symbols=[MASK_PIECE],
                num_threads=_TRAINER_THREADS,
                minloglevel=2,
                **rules,
            )
    except RuntimeError as error:
        raise InputError(_reason(str(error), config, name)) from error
    if feed.reserved:
        LOGGER.warning(
            "%s: %s lines hold U+0000 or U+2585, which sentencepiece keeps to itself: the rest of "
            "these lines was used, these characters are unknown",
            name,
            f"{feed.reserved:,}",
        )
    trained = model.getvalue()
    if config.normalization == "nfc":
        from fastkd.data.sentencepieces import with_name_of_rules

        trained = with_name_of_rules(trained, "nfc")
    return Tokenizer(trained)


class _Feed:
    """Lines as sentencepiece takes them: none longer than it reads, without its own characters."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = lines
        self.reserved = 0  # lines with characters that cannot be learned

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            plain = line.translate(_RESERVED)
            self.reserved += plain != line
            yield from _cut(plain)


def _cut(line: str) -> Iterator[str]:
    """Parts of a line of at most the longest length, at spaces where there are some."""
    while len(line) * 4 > _LONGEST_LINE and len(encoded := line.encode()) > _LONGEST_LINE:
        fitting = len(encoded[:_LONGEST_LINE].decode(errors="ignore"))
        space = line.rfind(" ", fitting // 2, fitting)
        end = fitting if space < 0 else space
        yield line[:end]
        line = line[end:]
    yield line


@contextlib.contextmanager
def _normalization(name: str) -> Iterator[dict[str, Any]]:
    """The trainer's arguments for it."""
    if name != "nfc":
        yield {"normalization_rule_name": name}
        return
    from fastkd.data.sentencepieces import nfc_rules

    with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".tsv") as file:
        file.write(nfc_rules())
        file.flush()
        yield {"normalization_rule_tsv": file.name}


def _bytes_of(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST_MODEL)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _reason(message: str, config: TokenizerConfig, name: str) -> str:
    asked = f"tokenizer.vocabulary = {config.vocabulary:,}"
    if too_high := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        largest = int(too_high[1])
        return f"{asked} is too large for the text of {name}; expected at most {largest:,}"
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        least = int(too_low[1])
        return (
            f"{asked} is too small for the characters of {name}; expected at least {least:,}, "
            "or a lower tokenizer.character_coverage"
        )
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return f"{name}: no text to train a tokenizer on"
    return f"{name}: a tokenizer cannot be trained: {message.splitlines()[0]}"


def _encoder_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
