"""From parallel text to the folder that training reads."""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastkd.config.tree import Config, DataConfig, TokenizerConfig
from fastkd.data.corpus import FILES, Corpus, write_corpus
from fastkd.data.text import count_pairs, read_pairs, text_file
from fastkd.data.tokenizer import FOLDER, Tokenizers, train_tokenizers
from fastkd.errors import InputError, NotPrepared
from fastkd.files import replaced_folder, write_file
from fastkd.reading import read_text, sha256_of

SPLITS = ("train", "dev", "test")

_MANIFEST = "prepared.json"  # written last: without it a folder is not prepared
_FORMAT = 1
_FILES = (
    _MANIFEST,
    *(f"{FOLDER}/{side}.model" for side in ("joint", "source", "target")),
    *(f"{split}/{file}" for split in SPLITS for file in FILES),
)

# Keys that a folder may be older than: what it was made with, and what else is taken for that, as
# it says nothing else by itself.
_BEFORE_THERE_WAS: dict[str, tuple[Any, ...]] = {
    "tokenizer.normalization": ("nmt_nfkc", TokenizerConfig().normalization),
    "tokenizer.source_normalization": (None,),
    "tokenizer.byte_fallback": (False,),
}

LOGGER = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # (stage, pairs done, pairs in all)


@dataclass(frozen=True)
class SplitReport:
    """What became of the pairs of one split."""

    pairs: int
    dropped: dict[str, int]  # by reason; none in dev and test
    source_tokens: int  # without end-of-sentence, as the target's
    target_tokens: int
    unknown: tuple[int, int]  # source and target lines with characters that have no piece

    @property
    def unknown_text(self) -> str:
        """A remark on them, empty where there are none."""
        if not any(self.unknown):
            return ""
        source, target = self.unknown
        return f"; with unknown characters: {source:,} source and {target:,} target lines"


@dataclass(frozen=True)
class PreparedReport:
    """What `prepare` did."""

    folder: str
    vocabulary: tuple[int, int]  # pieces of the source and the target tokenizer
    joint: bool
    splits: dict[str, SplitReport]
    reused: bool  # nothing had changed since the last time
    seconds: float

    def lines(self) -> list[str]:
        """The report for people, line by line."""
        source, target = self.vocabulary
        pieces = f"{source:,} joint pieces" if self.joint else f"{source:,} and {target:,} pieces"
        how = "unchanged" if self.reused else f"prepared in {self.seconds:.1f} s"
        lines = [f"{self.folder}: {how}; {pieces}"]
        for name, split in self.splits.items():
            reasons = [f"{count:,} {reason}" for reason, count in split.dropped.items() if count]
            dropped = f"; dropped: {', '.join(reasons)}" if reasons else ""
            source_mean = split.source_tokens / split.pairs
            target_mean = split.target_tokens / split.pairs
            means = f"{source_mean:.1f} and {target_mean:.1f} pieces"
            lines.append(f"{name}: {split.pairs:,} pairs of {means}{dropped}{split.unknown_text}")
        return lines


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus, opened."""

    folder: Path
    tokenizers: Tokenizers
    train: Corpus
    dev: Corpus
    test: Corpus | None
    texts: dict[str, tuple[Path, Path]]  # "dev" and "test": source text and reference

    def lines(self, split: str, count: int | None = None) -> tuple[list[str], list[str]]:
        """Raw source sentences and references of "dev" or "test", or the first `count` of them.

        Raises:
            InputError: there is no such split, or its text is gone or changed.
        """
        corpus = {"dev": self.dev, "test": self.test}.get(split)
        if corpus is None:
            raise InputError(
                f"{self.folder}: no split {split!r}; expected {' or '.join(self.texts)}"
            )
        source, target = self.texts[split]
        pairs = list(itertools.islice(read_pairs(source, target), count))
        if len(pairs) != (len(corpus) if count is None else min(count, len(corpus))):
            raise InputError(
                f"{source} has changed since it was prepared; run: fastkd prepare CONFIG"
            )
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def dev_lines(self, count: int | None = None) -> tuple[list[str], list[str]]:
        """`lines` of "dev"."""
        return self.lines("dev", count)


def prepare(config: Config, progress: Progress = lambda stage, done, total: None) -> PreparedReport:
    """Trains or takes the tokenizer and encodes every split into `data.prepared`.

    Does nothing where the folder was prepared from the same files with the same settings; else the
    folder is replaced when the new one is complete.
    Training pairs with an empty side or longer than `data.max_length` are dropped and counted;
    dev and test keep every line.

    Raises:
        InputError: a file is missing, empty, not UTF-8, or not as long as its counterpart; the
            text is too small for the vocabulary; no training pair is left; the folder holds
            anything else.
    """
    start = time.perf_counter()
    folder, texts, given = Path(config.data.prepared), _texts(config), _given(config)
    stamps = {name: [_stamp(path) for path in paths] for name, paths in texts.items()}
    hashes = _hashes(texts, progress)
    prepared = _unchanged(config, folder, hashes)
    reused = prepared is not None
    if prepared is None:
        _make(config, folder, texts, {"hashes": hashes, "stamps": stamps}, given, progress)
        prepared = _open(folder, _read_manifest(folder))
    splits = {name: _split_report(getattr(prepared, name)) for name in texts}
    tokenizers, seconds = prepared.tokenizers, time.perf_counter() - start
    vocabulary = (tokenizers.source.size, tokenizers.target.size)
    return PreparedReport(str(folder), vocabulary, tokenizers.joint, splits, reused, seconds)


def open_prepared(config: Config, texts: bool = True) -> Prepared:
    """Opens what `prepare` wrote for this config.

    texts: whether they must be what was prepared

    Raises:
        NotPrepared: it is not prepared, or with other settings or another tokenizer.
        InputError: it is damaged, or a text has changed since.
    """
    folder = Path(config.data.prepared)
    manifest = _read_manifest(folder)
    prepared = _open(folder, manifest)
    difference = _difference(config, manifest, prepared)
    if difference is not None:
        raise NotPrepared(f"{folder}: prepared with {difference}, or run: fastkd prepare CONFIG")
    for path in _changed(manifest) if texts else ():
        raise InputError(f"{path}: has changed since it was prepared; run: fastkd prepare CONFIG")
    if (kept := _kept_normalization(config, manifest)) is not None:
        LOGGER.warning(
            "%s: keeps tokenizer.normalization=%s, with which it was prepared; new ones have %s",
            *(folder, kept, TokenizerConfig().normalization),
        )
    return prepared


def _changed(manifest: dict[str, Any]) -> Iterator[Path]:
    """Texts that are no longer what was prepared; one that is not there has not changed.

    A text is read again only where its size or time is another than when it was prepared.
    """
    stamps = manifest.get("stamps", {})
    for split, paths in manifest["texts"].items():
        known = stamps.get(split, [None, None])
        for path, stamp, sha256 in zip(paths, known, manifest["hashes"][split], strict=True):
            file = Path(path)
            if file.is_file() and _stamp(file) != stamp and _file_hash(file) != sha256:
                yield file


def _stamp(path: Path) -> list[int]:
    """Size and time of a file."""
    try:
        about = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return [about.st_size, about.st_mtime_ns]


def _texts(config: Config) -> dict[str, tuple[Path, Path]]:
    """Source and target file of each split that the config names."""
    data = config.data
    prefixes = {name: getattr(data, name) for name in SPLITS}
    return {
        name: (text_file(prefix, data.source), text_file(prefix, data.target))
        for name, prefix in prefixes.items()
        if prefix is not None
    }


def _settings(part: DataConfig | TokenizerConfig, name: str) -> dict[str, Any]:
    """What the prepared files depend on, by its key in the config."""
    settings = {f"{name}.{key}": value for key, value in asdict(part).items()}
    settings.pop("data.prepared", None)
    return settings


def _made_from(config: Config) -> dict[str, Any]:
    """Settings that made a folder; none of the tokenizer's where another run's was taken."""
    settings = _settings(config.data, "data")
    if isinstance(config.tokenizer, str):
        return settings
    return settings | _settings(config.tokenizer, "tokenizer")


def _difference(config: Config, manifest: dict[str, Any], prepared: Prepared) -> str | None:
    """In what a prepared folder is not what `config` asks for.

    Where the config takes another run's tokenizer it only matters that it is the same one, so a
    student can use the folder that its teacher's tokenizer was trained in.
    """
    was = manifest["made_from"]
    for key, value in _made_from(config).items():
        if "tokenizer.vocabulary" not in was and key.startswith("tokenizer."):
            had = "the tokenizer of another run, but the config asks to train one"
            return f"{had}; expected tokenizer=RUN here too"
        accepted = _BEFORE_THERE_WAS.get(key, ()) if key not in was else (was[key],)
        if value not in accepted:
            had = (*accepted, None)[0]
            same = f"{key}={'null' if had is None else had}"
            return f"{key} = {had}, but the config says {value}; expected {same} here too"
    given = _given(config)
    if given is not None and given.sha256 != prepared.tokenizers.sha256:
        return f"another tokenizer than that of {config.tokenizer}; expected that one's run here"
    return None


def _kept_normalization(config: Config, manifest: dict[str, Any]) -> str | None:
    """That of a folder of before there was a choice, where the config does not name it."""
    key = "tokenizer.normalization"
    was, old = manifest["made_from"], _BEFORE_THERE_WAS[key][0]
    older = "tokenizer.vocabulary" in was and key not in was
    if not older or not isinstance(config.tokenizer, TokenizerConfig):
        return None
    return None if config.tokenizer.normalization == old else str(old)


def _given(config: Config) -> Tokenizers | None:
    """Another run's tokenizers, where the config takes those."""
    if not isinstance(config.tokenizer, str):
        return None
    try:
        return Tokenizers.load(config.tokenizer)
    except InputError as error:
        kind = InputError if Path(config.tokenizer).exists() else NotPrepared
        raise kind(f"tokenizer: {error}") from error


def _hashes(texts: dict[str, tuple[Path, Path]], progress: Progress) -> dict[str, list[str]]:
    hashes = {}
    for index, (name, paths) in enumerate(texts.items()):
        progress("reading", index, len(texts))
        hashes[name] = [_file_hash(path) for path in paths]
    return hashes


def _file_hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _unchanged(config: Config, folder: Path, hashes: dict[str, list[str]]) -> Prepared | None:
    """What is there already, if it is whole and was made from the same."""
    try:
        manifest = _read_manifest(folder)
        prepared = _open(folder, manifest)
    except InputError:
        return None
    same = manifest["hashes"] == hashes and _difference(config, manifest, prepared) is None
    return prepared if same else None


def _make(
    config: Config,
    folder: Path,
    texts: dict[str, tuple[Path, Path]],
    found: dict[str, Any],
    given: Tokenizers | None,
    progress: Progress,
) -> None:
    """Everything anew; what was prepared before stays until that is done.

    found: hashes and stamps of the texts
    """
    with replaced_folder(folder, _FILES) as new:
        counts = {name: count_pairs(*paths) for name, paths in texts.items()}
        tokenizers = given
        if isinstance(config.tokenizer, TokenizerConfig):
            progress("tokenizer", 0, counts["train"])
            tokenizers = train_tokenizers(config.tokenizer, *texts["train"], counts["train"])
        assert tokenizers is not None
        tokenizers.save(new)
        for name, paths in texts.items():
            _encode(new / name, config.data, name, paths, counts[name], tokenizers, progress)
        for name, paths in texts.items():
            if [_stamp(path) for path in paths] != found["stamps"][name]:
                raise InputError(f"{paths[0]} or {paths[1]}: has changed while it was read")
        manifest = {
            "format": _FORMAT,
            "made_from": _made_from(config),
            **found,
            "texts": {name: [str(path) for path in paths] for name, paths in texts.items()},
        }
        write_file(new / _MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def _encode(
    folder: Path,
    data: DataConfig,
    name: str,
    paths: tuple[Path, Path],
    count: int,
    tokenizers: Tokenizers,
    progress: Progress,
) -> None:
    """Writes the corpus of one split; only training pairs may be dropped."""
    corpus = write_corpus(
        folder,
        read_pairs(*paths),
        tokenizers,
        (data.source, data.target),
        data.max_length if name == "train" else None,
        lambda done: progress(name, done, count),
    )
    if len(corpus) == 0:
        dropped = ", ".join(f"{number:,} {reason}" for reason, number in corpus.dropped.items())
        raise InputError(
            f"{paths[0]}: no training pair is left of {count:,} ({dropped}); "
            f"data.max_length = {data.max_length}"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise NotPrepared(f"{folder}: not prepared yet; run: fastkd prepare CONFIG")
    try:
        manifest: dict[str, Any] = json.loads(read_text(path))
        known = manifest["format"] == _FORMAT
        _ = manifest["made_from"], manifest["hashes"], manifest["texts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged; run: fastkd prepare CONFIG") from error
    if not known:
        raise NotPrepared(f"{path}: written by another version; run: fastkd prepare CONFIG")
    return manifest


def _open(folder: Path, manifest: dict[str, Any]) -> Prepared:
    tokenizers = Tokenizers.load(folder)
    corpora = {name: Corpus(folder / name) for name in manifest["texts"]}
    for name, corpus in corpora.items():
        if corpus.tokenizers_sha256 != tokenizers.sha256:
            raise InputError(
                f"{folder / name}: encoded with another tokenizer than {folder / 'tokenizer'}; "
                "run: fastkd prepare CONFIG"
            )
    texts = {
        name: (Path(source), Path(target))
        for name, (source, target) in manifest["texts"].items()
        if name != "train"
    }
    return Prepared(
        folder, tokenizers, corpora["train"], corpora["dev"], corpora.get("test"), texts
    )


def _split_report(corpus: Corpus) -> SplitReport:
    source_tokens, target_tokens = (len(side.tokens) for side in corpus.sides)
    return SplitReport(len(corpus), corpus.dropped, source_tokens, target_tokens, corpus.unknown)
