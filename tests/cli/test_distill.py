"""`fastkd distill`: a teacher's translations as training text, whatever ends it in between."""

import shutil

import pytest

from fastkd.data.text import read_lines
from fastkd.decode.score import sentence_chrf
from fastkd.decode.translate import Translator
from fastkd.runs import sequences
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import open_translator
from tests.cli.conftest import train_on


@pytest.fixture
def run(taught) -> str:
    return str(taught.folder / "teacher")


@pytest.fixture
def expected(run):
    lines = list(read_lines(RunFolder.open(run).path.parent / "train.de"))
    return [best.text for best, *_ in open_translator(RunFolder.open(run)).translate(lines)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_training_text_as_the_teacher_translates_it(taught, run, expected, tmp_path, capsys):
    assert taught.run("distill", run, str(tmp_path / "new" / "text")) == 0
    assert "written; 60 lines" in capsys.readouterr().out
    written = tmp_path / "new"
    assert names(written) == ["text.de", "text.distilled.json", "text.dsb"]
    assert list(read_lines(written / "text.dsb")) == expected
    assert (written / "text.de").read_bytes() == (taught.folder / "train.de").read_bytes()


def test_it_goes_on_where_it_was_ended(taught, run, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sequences, "BLOCK", 16)
    translate, seen = Translator.translate, []

    def dying(self, lines):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(lines))
        return translate(self, lines)

    monkeypatch.setattr(Translator, "translate", dying)
    assert taught.run("distill", run, str(tmp_path / "text")) != 0
    assert names(tmp_path) == [".text.distilling"]
    target = tmp_path / ".text.distilling" / "target"
    target.write_bytes(target.read_bytes() + b"half a li")  # written as the machine went down

    def counting(self, lines):
        seen.append(len(lines))
        return translate(self, lines)

    monkeypatch.setattr(Translator, "translate", counting)
    assert taught.run("distill", run, str(tmp_path / "text")) == 0
    assert seen == [16, 16, 16, 12]
    assert list(read_lines(tmp_path / "text.dsb")) == expected
    assert taught.run("distill", run, str(tmp_path / "text")) == 0
    assert "unchanged; 60 lines" in capsys.readouterr().out and len(seen) == 4
    assert taught.run("distill", run, str(tmp_path / "text"), "--beam", "1") == 0
    assert len(seen) == 8  # other settings, all anew
    (tmp_path / "text.dsb").write_text("spoiled\n")
    assert taught.run("distill", run, str(tmp_path / "text"), "--beam", "1") == 0
    assert len(seen) == 12


@pytest.mark.parametrize("engine", ["pytorch", "ctranslate2"])
def test_the_text_is_of_the_weights_that_it_is_noted_with(
    taught, run, expected, tmp_path, monkeypatch, engine
):
    """Also where the teacher's best checkpoint is another one before they are loaded."""
    pytest.importorskip(engine.replace("pytorch", "torch"))
    teacher, opened = shutil.copytree(run, tmp_path / "teacher"), sequences.open_translator

    def trained_meanwhile(*arguments, **search):
        train_on(teacher)
        return opened(*arguments, **search)

    monkeypatch.setattr(sequences, "open_translator", trained_meanwhile)
    command = ["distill", str(teacher), str(tmp_path / "text"), "--engine", engine]
    assert taught.run(*command) == 0
    assert list(read_lines(tmp_path / "text.dsb")) == expected
    monkeypatch.setattr(sequences, "open_translator", opened)
    assert taught.run(*command) == 0  # by the weights of now
    assert list(read_lines(tmp_path / "text.dsb")) != expected


def test_the_nearest_to_the_reference_of_n_best(taught, run, expected, tmp_path):
    assert taught.run("distill", run, str(tmp_path / "text"), "--n-best", "2") == 0
    references = list(read_lines(taught.folder / "train.dsb"))
    found = list(read_lines(tmp_path / "text.dsb"))
    assert found != expected
    pairs = zip(found, expected, references, strict=True)
    assert all(sentence_chrf(one, r) >= sentence_chrf(other, r) for one, other, r in pairs)


def test_monolingual_text(taught, run, tmp_path):
    (tmp_path / "mono").write_text("ein hund\n\nkatze\n")
    arguments = ["distill", run, str(tmp_path / "text"), "--source", str(tmp_path / "mono")]
    assert taught.run(*arguments) == 0
    lines = list(read_lines(tmp_path / "text.dsb"))
    assert len(lines) == 3 and lines[1] == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--reference", "x"], "--reference: goes with --source"),
        (["--source", "missing"], "missing: cannot be read"),
        (["--n-best", "9"], "--n-best 9: expected at most 2"),
        (["--compute-type", "int8"], "goes with --engine ctranslate2"),
    ],
)
def test_what_is_refused(taught, run, tmp_path, capsys, arguments, complaint):
    assert taught.run("distill", run, str(tmp_path / "text"), *arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "text.dsb").exists()


def test_the_corpus_itself_is_not_replaced(taught, run, capsys):
    before = (taught.folder / "train.dsb").read_bytes()
    assert taught.run("distill", run, str(taught.folder / "train")) == 2
    assert "is the text that is read" in capsys.readouterr().err
    assert (taught.folder / "train.dsb").read_bytes() == before


def test_a_text_that_it_did_not_write_is_not_replaced(taught, run, tmp_path, capsys):
    (tmp_path / "mono").write_text("ein hund\n")
    (tmp_path / "text.de").write_text("mine")
    command = ["distill", run, str(tmp_path / "text"), "--source", str(tmp_path / "mono")]
    assert taught.run(*command) == 2
    assert "text.de: is there, and is nothing that this command wrote" in capsys.readouterr().err
    (tmp_path / "text.de").unlink()
    (tmp_path / ".text.distilling").mkdir()
    (tmp_path / ".text.distilling" / "thesis").write_text("mine")
    assert taught.run(*command) == 2
    assert "thesis in it is something else" in capsys.readouterr().err
    assert (tmp_path / ".text.distilling" / "thesis").read_text() == "mine"


def test_killed_between_its_files_it_goes_on(taught, run, tmp_path, monkeypatch):
    write, written = sequences.whole_file, []

    def dying(path):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        return write(path)

    with monkeypatch.context() as patch:
        patch.setattr(sequences, "whole_file", dying)
        assert taught.run("distill", run, str(tmp_path / "text")) == 1
    assert (tmp_path / "text.de").exists() and not (tmp_path / "text.dsb").exists()
    assert taught.run("distill", run, str(tmp_path / "text")) == 0
    assert len((tmp_path / "text.dsb").read_text().splitlines()) == 60
