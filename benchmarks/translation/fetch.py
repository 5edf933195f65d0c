"""Fetches, checks and cleans the text of a published recipe, where there is a network.

    python -m benchmarks.translation.fetch wmt22-de-dsb [--trust]

Writes data/CORPUS/{train,dev,test}.{language}.gz. Archives are kept in data/downloads. Each is
compared with its SHA-256 in `sources.sha256`; for one that has none yet `--trust` notes what comes.
"""

import argparse
import hashlib
import html
import re
import sys
import tarfile
import unicodedata
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from benchmarks.translation.sources import TEXTS, Part, Text
from fastkd.data.lines import decoded_lines, opened, opened_output
from fastkd.errors import InputError
from fastkd.files import whole_file, write_file

HASHES = Path(__file__).with_name("sources.sha256")
SPLITS = ("train", "dev", "test")
Pair = tuple[str, str]
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u00ad\u200b\u200c\u200d\u2060"))
_SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.IGNORECASE)
_TAGGED = re.compile(r"</?(title|description)>")
_ABOUT = ("<url>", "<talkid>", "<keywords>", "<speaker", "<reviewer", "<translator")
_BLOCK = 1 << 20


def fetch(text: Text, folder: Path, downloads: Path, hashes: Path, trust: bool) -> dict[str, int]:
    """Writes the splits into `folder`; pairs by split.

    Raises InputError for a file that cannot be had or is not what its hash says, and for sides of
    different lengths; nothing is written then.
    """
    known = read_hashes(hashes)
    raw = {
        split: [
            pair for part in parts for pair in _pairs(part, text, downloads, known, hashes, trust)
        ]
        for split, parts in text.parts.items()
    }
    cut = cleaned(raw, text)
    folder.mkdir(parents=True, exist_ok=True)
    for split, pairs in cut.items():
        for side, language in enumerate(text.languages):
            with opened_output(str(folder / f"{split}.{language}.gz"), None) as file:
                file.write("".join(f"{pair[side]}\n" for pair in pairs).encode())
    return {split: len(pairs) for split, pairs in cut.items()}


def cleaned(raw: Mapping[str, list[Pair]], text: Text) -> dict[str, list[Pair]]:
    """Train without what is empty, too long or crooked, and splits without each other's sentences.

    A sentence is another's where letters and digits agree in NFKC, whatever their case. Dev, and
    test where pairs are not to be unique, stay as published, so that what they have in common with
    train is left out of train.
    """
    plain = {split: [_plain(pair) for pair in pairs] for split, pairs in raw.items()}
    train = [pair for pair in plain["train"] if _fits(pair, text)]
    if text.unique:
        train = list(dict.fromkeys(train))
    dev = plain.get("dev", [])
    if text.dev_every:
        dev = train[text.dev_every - 1 :: text.dev_every]
        train = [pair for n, pair in enumerate(train, 1) if n % text.dev_every]
    test = plain["test"]
    if text.unique:
        test = _without(dict.fromkeys(test), dev)
    return {"train": _without(train, [*dev, *test]), "dev": dev, "test": test}


def _without(pairs: Iterable[Pair], held: Iterable[Pair]) -> list[Pair]:
    """Pairs of which neither side is one of `held`."""
    seen: tuple[set[str], set[str]] = (set(), set())
    for pair in held:
        for side in (0, 1):
            seen[side].add(_letters(pair[side]))
    return [p for p in pairs if not any(_letters(p[s]) in seen[s] for s in (0, 1))]


def _letters(sentence: str) -> str:
    folded = unicodedata.normalize("NFKC", sentence).casefold()
    return "".join(filter(str.isalnum, folded))


def _plain(pair: Pair) -> Pair:
    source, target = (" ".join(side.translate(_INVISIBLE).split()) for side in pair)
    return source, target


def _fits(pair: Pair, text: Text) -> bool:
    counts = sorted(len(side.split()) for side in pair)
    lettered = all(any(map(str.isalpha, side)) for side in pair)
    if not lettered or pair[0] == pair[1]:
        return False
    return counts[1] <= text.longest and counts[1] <= text.ratio * counts[0]


def _pairs(
    part: Part, text: Text, downloads: Path, known: dict[str, str], hashes: Path, trust: bool
) -> list[Pair]:
    sides = []
    for language, given in zip(text.languages, part.sides, strict=True):
        url, _, member = part.place.format(given or language).partition("!")
        file = downloads / url.partition("://")[2].replace("/", "_")
        if not file.is_file():
            _download(url, file)
        _check(url, file, known, hashes, trust)
        sides.append(list(_sentences(file, member, url)))
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"{part.place}: {len(sides[0]):,} and {len(sides[1]):,} sentences")
    return list(zip(*sides, strict=True))


def _download(url: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {url}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, whole_file(file) as target:
            wanted, got = response.headers.get("Content-Length"), 0
            while block := response.read(_BLOCK):
                target.write(block)
                got += len(block)
            if wanted is not None and got != int(wanted):
                raise InputError(f"{url}: {got:,} bytes came of {int(wanted):,}; try again")
    except OSError as error:
        raise InputError(f"{url}: cannot be fetched: {error}") from None


def _check(url: str, file: Path, known: dict[str, str], hashes: Path, trust: bool) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if url not in known:
        if not trust:
            raise InputError(
                f"{url}: no hash of it is known; --trust notes that of what came, {found[:12]}…"
            )
        known[url] = found
        text = "".join(f"{value}  {name}\n" for name, value in sorted(known.items()))
        write_file(hashes, text.encode())
    if known[url] != found:
        raise InputError(
            f"{file}: SHA-256 {found[:12]}…, expected {known[url][:12]}… of {url}; delete it to "
            "fetch it again"
        )


def read_hashes(file: Path) -> dict[str, str]:
    """SHA-256 by address, of lines as `sha256sum` writes them."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return {url: value for value, url in (line.split("  ", 1) for line in lines if line)}


def _sentences(file: Path, member: str, url: str) -> Iterator[str]:
    if not member:
        with opened(file) as plain:
            yield from decoded_lines(plain, url)
        return
    try:
        with tarfile.open(file) as archive:
            inside = archive.extractfile(member)
            if inside is None:
                raise KeyError("a folder")
            lines = decoded_lines(cast(BinaryIO, inside), f"{url}!{member}")
            yield from _untagged(lines, member)
    except (KeyError, tarfile.TarError, OSError) as error:
        raise InputError(f"{url}: no {member} in it: {error}") from None


def _untagged(lines: Iterable[str], name: str) -> Iterator[str]:
    """Sentences of a file with marks: segments of XML and SGM, talks of IWSLT."""
    if name.endswith((".xml", ".sgm")):
        for line in lines:
            if found := _SEGMENT.search(line):
                yield html.unescape(found[1]).strip()
    elif ".tags." in name:
        for line in lines:
            if not any(mark in line for mark in _ABOUT):
                yield html.unescape(_TAGGED.sub("", line)).strip()
    else:
        yield from lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", choices=sorted(TEXTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of all corpora")
    parser.add_argument("--trust", action="store_true", help="note hashes that are not known")
    options = parser.parse_args(arguments)
    text = TEXTS[options.corpus]
    folder = options.data / options.corpus
    try:
        pairs = fetch(text, folder, options.data / "downloads", HASHES, options.trust)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for split in SPLITS:
        before = text.pairs.get(split, pairs[split])
        remark = "" if before == pairs[split] else f"; the benchmarks' text has {before:,}"
        print(f"{folder / split}: {pairs[split]:,} pairs{remark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
