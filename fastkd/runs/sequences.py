"""Sequence-level distillation: a teacher's translations as the text that a student trains on.

(Kim and Rush, 2016, section 3.2; the choice among several by likeness to the reference is their
sequence-level interpolation, section 3.3, with chrF.)
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from fastkd.data.text import read_lines, read_pairs, text_file
from fastkd.decode.score import sentence_chrf
from fastkd.decode.translate import Translation, Translator
from fastkd.errors import InputError
from fastkd.files import named, refuse_foreign, whole_file, writable, write_file
from fastkd.reading import expect_file, read_text, sha256_of
from fastkd.runs.folder import RunFolder, Weights
from fastkd.runs.lock import only_one
from fastkd.runs.translation import OWN, Engine, decoding_settings, open_translator

BLOCK = 2048  # lines translated between two notes of how far the work is
_FORMAT = 1
_OWN = ("target", "state.json", ".lock", ".*.partial")  # of the folder of work in progress


@dataclass(frozen=True)
class Request:
    """What is to be translated, and how.

    source: a text file, plain or gzip; None: the training text of the teacher's corpus
    reference: its references, line by line, for the choice among `n_best`; None: those of the
        training text where `source` is None, else none
    """

    source: Path | None = None
    reference: Path | None = None
    checkpoint: str = "best"
    device: str = "auto"
    n_best: int = 1
    engine: Engine = OWN


def note_of(prefix: Path) -> Path:
    """What tells of a distilled text that it is complete, and how it was made."""
    return prefix.with_name(f"{prefix.name}.distilled.json")


@dataclass(frozen=True)
class Distilled:
    """The text that was written."""

    source: Path
    target: Path
    lines: int
    empty: int  # translations without text, which `prepare` drops with their pairs
    reused: bool  # all of it was there already


def distil(
    run: RunFolder,
    prefix: Path,
    request: Request,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **search: Any,
) -> Distilled:
    """Writes `prefix.SOURCE` and `prefix.TARGET`, named by the run's languages.

    Goes on where an earlier call with the same request was ended, by whatever, and does nothing
    where one was completed. The two files appear when all is translated. `progress` is called with
    the lines done and the lines in all.

    search: settings of `decoding_settings`

    Raises InputError for files that cannot be read or differ in length, and where a file would be
    replaced that this did not write, such as the text of the run's corpus.
    """
    data = run.config.data
    files = [Path(f"{prefix}.{language}") for language in (data.source, data.target)]
    source, reference = _texts(run, request)
    if {file.resolve() for file in files} & {
        file.resolve() for file in (source, reference) if file
    }:
        raise InputError(f"{prefix}: is the text that is read; expected another prefix")
    weights = run.read_weights(request.checkpoint)  # of all lines, whatever is trained meanwhile
    wanted = _fingerprint(run, weights, source, reference, request, search)
    folder = prefix.with_name(f".{prefix.name}.distilling")
    note = note_of(prefix)
    with writable(prefix):
        _refuse_others(files, note)
        refuse_foreign(folder, _OWN)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
    try:
        with only_one(folder / ".lock", prefix):
            work = _Work(folder, wanted)
            done = _completed(note, wanted, files)
            if done is None:
                _translate(run, weights, request, search, source, reference, work, progress)
                done = _finish(work, source, files, note, wanted)
                reused = False
            else:
                reused = True
    except Timeout:
        raise InputError(f"{prefix}: another process writes this text; wait for it") from None
    shutil.rmtree(folder, ignore_errors=True)
    return Distilled(files[0], files[1], done["lines"], done["empty"], reused)


def _refuse_others(files: list[Path], note: Path) -> None:
    """A text without a note, which is written before it, is somebody's."""
    there = [file for file in files if os.path.lexists(file)]
    if there and not note.is_file():
        raise InputError(
            f"{there[0]}: is there, and is nothing that this command wrote; expected another prefix"
        )


class _Work:
    """What is translated so far: `target`, and in `state.json` how much of it counts."""

    def __init__(self, folder: Path, wanted: str) -> None:
        self.target, self.state = folder / "target", folder / "state.json"
        self.wanted = wanted
        self.lines = self.empty = self.bytes = 0
        try:
            state = json.loads(read_text(self.state))
            if state["wanted"] == wanted and self.target.stat().st_size >= state["bytes"]:
                self.lines, self.empty, self.bytes = (
                    int(state[key]) for key in ("lines", "empty", "bytes")
                )
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing was begun, or not whole: from the first line on
        expect_file(self.target)
        with open(self.target, "ab") as file:
            file.truncate(self.bytes)

    def append(self, texts: list[str]) -> None:
        """Adds lines; they count once the disk has them."""
        content = "".join(f"{text}\n" for text in texts).encode()
        with named(self.target), open(self.target, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.lines += len(texts)
        self.empty += texts.count("")
        self.bytes += len(content)
        state = {name: getattr(self, name) for name in ("wanted", "lines", "empty", "bytes")}
        write_file(self.state, json.dumps(state).encode())


def _translate(
    run: RunFolder,
    weights: Weights,
    request: Request,
    search: dict[str, Any],
    source: Path,
    reference: Path | None,
    work: _Work,
    progress: Callable[[int, int], None],
) -> None:
    total = sum(1 for _ in _pairs(source, reference))
    if total == 0:
        raise InputError(f"{source}: is empty; expected one sentence per line")
    progress(work.lines, total)
    if work.lines == total:
        return
    translator = open_translator(
        run, request.checkpoint, request.device, request.engine, request.n_best, weights, **search
    )
    translator.seen = work.lines
    pairs = itertools.islice(_pairs(source, reference), work.lines, None)
    while block := list(itertools.islice(pairs, BLOCK)):
        work.append(list(_chosen(translator, block)))
        progress(work.lines, total)


def _chosen(translator: Translator, block: list[tuple[str, str | None]]) -> Iterator[str]:
    """The best of each line's translations: by chrF to its reference, else by the model."""
    found = translator.translate([line for line, _ in block])
    for translations, (_, wanted) in zip(found, block, strict=True):
        yield _nearest(translations, wanted)


def _nearest(translations: list[Translation], wanted: str | None) -> str:
    if wanted is None or len(translations) == 1:
        return translations[0].text
    return max((text for text, _ in translations), key=lambda text: sentence_chrf(text, wanted))


def _pairs(source: Path, reference: Path | None) -> Iterator[tuple[str, str | None]]:
    if reference is None:
        return ((line, None) for line in read_lines(source))
    return read_pairs(source, reference)


def _texts(run: RunFolder, request: Request) -> tuple[Path, Path | None]:
    data = run.config.data
    if request.source is not None:
        reference = request.reference
        return request.source, reference if request.n_best > 1 else None
    if request.reference is not None:
        raise InputError("--reference: goes with --source; the training text has its own")
    source = text_file(data.train, data.source)
    return source, text_file(data.train, data.target) if request.n_best > 1 else None


def _fingerprint(
    run: RunFolder,
    weights: Weights,
    source: Path,
    reference: Path | None,
    request: Request,
    search: dict[str, Any],
) -> str:
    """Of all that the translations depend on."""
    parts = [
        _FORMAT,
        weights.meta["sha256"],
        run.tokenizers.sha256,
        asdict(decoding_settings(run, **search)),
        [None if file is None else _sha256(file) for file in (source, reference)],
        request.n_best,
        asdict(request.engine),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _completed(note: Path, wanted: str, files: list[Path]) -> dict[str, Any] | None:
    """The note of a text that is there and is what is wanted."""
    try:
        found = json.loads(read_text(note))
        same = found["wanted"] == wanted and found["sha256"] == [_sha256(file) for file in files]
        return {key: int(found[key]) for key in ("lines", "empty")} if same else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def _finish(
    work: _Work, source: Path, files: list[Path], note: Path, wanted: str
) -> dict[str, Any]:
    """Puts the files in place, between a note that they are ours and one that they are complete."""
    if not note.is_file():
        write_file(note, json.dumps({"wanted": wanted}).encode())
    with whole_file(files[0]) as file:
        file.writelines(line.encode() + b"\n" for line in read_lines(source))
    with whole_file(files[1]) as file, open(work.target, "rb") as translated:
        shutil.copyfileobj(translated, file)
    done = {"lines": work.lines, "empty": work.empty}
    content = {"wanted": wanted, "sha256": [_sha256(file) for file in files], **done}
    write_file(note, (json.dumps(content, indent=2) + "\n").encode())
    return done
