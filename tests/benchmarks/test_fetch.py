"""The text of published recipes, fetched from a server on this machine."""

import functools
import gzip
import io
import tarfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.translation.fetch import cleaned, fetch, main, read_hashes
from benchmarks.translation.sources import TEXTS, Part
from fastkd.config.load import load_config
from fastkd.data.lines import count_lines
from fastkd.data.prepare import open_prepared, prepare
from fastkd.errors import InputError

WORDS = ["lomu", "resi", "tava", "kelo", "minu", "sora", "patu", "vesi", "halo", "rinu"]


def sentences(count, salt):
    return [
        " ".join(f"{WORDS[(n // 10**place + salt) % 10]}{place}" for place in range(4)) + f" {n}"
        for n in range(count)
    ]


@pytest.fixture
def site(tmp_path):
    """A folder and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def put(folder, files):
    """Writes files as what their names say; those in archives by archive."""
    archives = {}
    for name, text in files.items():
        archive, _, member = name.partition("!")
        data = text.encode()
        if member:
            archives.setdefault(archive, {})[member] = data
        else:
            (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for archive, members in archives.items():
        with tarfile.open(folder / archive, "w:gz") as tar:
            for member, data in members.items():
                about = tarfile.TarInfo(member)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


def marked(lines, place):
    """As the files of that kind look."""
    if place.endswith((".xml", ".sgm")):
        body = "\n".join(f'<seg id="{n}"> {line} &amp; so </seg>' for n, line in enumerate(lines))
        return f"<doc>\n{body}\n</doc>\n"
    if ".tags." in place:
        body = "\n".join(lines)
        return f"<url>http://talk</url>\n<keywords>a, b</keywords>\n{body}\n"
    return "".join(f"{line}\n" for line in lines)


def moved(text, site):
    """The corpus with its files on the site, a few invented sentences in each."""
    folder, address = site
    files, parts, salt = {}, {}, 0
    for split, own in text.parts.items():
        parts[split] = []
        for part in own:
            salt += 1
            url, mark, member = part.place.partition("!")
            short = url.rpartition("/")[2] + mark + member
            parts[split].append(Part(f"{address}/{short}", part.sides))
            for side, (language, given) in enumerate(zip(text.languages, part.sides, strict=True)):
                lines = [f"{line} {split}{salt}" for line in sentences(60, 3 * side + salt)]
                name = short.format(given or language)
                files[name] = marked(lines, name)
        parts[split] = tuple(parts[split])
    put(folder, files)
    return replace(text, parts=parts)


@pytest.mark.parametrize("corpus", sorted(TEXTS))
def test_what_is_fetched_is_prepared_by_its_recipe(corpus, site, tmp_path):
    text = moved(TEXTS[corpus], site)
    folder = tmp_path / "data" / corpus
    hashes = tmp_path / "hashes"
    pairs = fetch(text, folder, tmp_path / "downloads", hashes, trust=True)
    assert all(pairs[split] > 0 for split in ("train", "dev", "test"))
    for split, count in pairs.items():
        for language in text.languages:
            assert count_lines(folder / f"{split}.{language}.gz") == count
    overrides = [f"data.{split}={folder / split}" for split in ("train", "dev", "test")]
    overrides += [f"data.prepared={tmp_path / 'prepared'}", f"run={tmp_path / 'run'}"]
    config = load_config(f"{corpus}/teacher", [*overrides, "tokenizer.vocabulary=48"])
    prepare(config)
    assert len(open_prepared(config).train) == pairs["train"]
    again = fetch(text, folder, tmp_path / "downloads", hashes, trust=False)
    assert again == pairs


@pytest.mark.parametrize("corpus", sorted(TEXTS))
def test_every_file_of_a_corpus_has_a_name_in_each_language(corpus):
    text = TEXTS[corpus]
    for part in (part for parts in text.parts.values() for part in parts):
        places = {
            part.place.format(g or lang) for lang, g in zip(text.languages, part.sides, strict=True)
        }
        assert len(places) == 2
        assert part.place.startswith("http")
    assert load_config(f"{corpus}/teacher").data.source == text.languages[0]


def test_an_unknown_hash_is_not_trusted_by_itself(site, tmp_path):
    text = moved(TEXTS["wmt22-de-dsb"], site)
    with pytest.raises(InputError, match="--trust"):
        fetch(text, tmp_path / "data", tmp_path / "downloads", tmp_path / "hashes", trust=False)
    assert not (tmp_path / "data").exists()


def test_another_file_than_before_is_refused(site, tmp_path):
    text = moved(TEXTS["wmt22-de-dsb"], site)
    where = (tmp_path / "data", tmp_path / "downloads", tmp_path / "hashes")
    fetch(text, *where, trust=True)
    assert len(read_hashes(where[2])) == 6
    file = next(where[1].iterdir())
    file.write_bytes(b"something else")
    with pytest.raises(InputError, match="SHA-256"):
        fetch(text, *where, trust=True)


def test_a_file_that_is_not_there_is_one_line(site, tmp_path):
    text = moved(TEXTS["wmt22-de-dsb"], site)
    for file in site[0].iterdir():
        file.unlink()
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch(text, tmp_path / "data", tmp_path / "downloads", tmp_path / "hashes", trust=True)


def test_sides_of_different_lengths_are_refused(site, tmp_path):
    text = moved(TEXTS["wmt22-de-dsb"], site)
    put(site[0], {"valid.de.gz": "one\n"})
    with pytest.raises(InputError, match="1 and 60 sentences"):
        fetch(text, tmp_path / "data", tmp_path / "downloads", tmp_path / "hashes", trust=True)


def test_cleaning():
    text = TEXTS["wmt22-de-dsb"]
    raw = {
        "train": [
            ("\ufeffGut  ge\u00adsagt", "derje groniš"),
            ("gut gesagt", "derje groniš"),
            ("Dobry źeń!", "same"),  # in test, but for case and marks
            ("", "prozne"),
            ("gleich", "gleich"),
            ("12", "34"),
            ("ein", "dwa tśi styri pěś"),
            ("w " * 176, "w " * 176 + "x"),
            ("gut gesagt", "derje groniš"),
        ],
        "dev": [("nur dev", "jano")],
        "test": [("dobry źeń", "x"), ("dobry źeń", "x"), ("Nur dev.", "y")],
    }
    found = cleaned(raw, text)
    assert found["train"] == [("Gut gesagt", "derje groniš"), ("gut gesagt", "derje groniš")]
    assert found["dev"] == [("nur dev", "jano")]
    assert found["test"] == [("dobry źeń", "x")]


def test_an_unknown_corpus_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["wmt99"])
    assert "wmt22-de-dsb" in capsys.readouterr().err
