"""`fastkd translate` as a filter: one line out for each line in, in order."""

import gzip
import io
import os
import subprocess
import sys

import psutil
import pytest

from fastkd.decode.beam import Hypotheses, Hypothesis
from fastkd.decode.translate import Translation, Translator
from tests.cli.conftest import WORDS

ODD = [
    "",
    "   ",
    "\t",
    "\x00",
    "ein\x00hund",
    "ein\rhund",
    "\u2028",
    "ein\u2028hund\x85katze\x0b\x1c",
    "\ufeff",
    "\N{GRINNING FACE} \ufffd",
    "ein " * 3000,
    "x" * 20_000,
    "\x00" * 5000,
]


def number(count: int) -> str:
    """Words for a number, others for each."""
    digits = list(WORDS)
    return digits[count % 5] if count < 5 else f"{number(count // 5)} {digits[count % 5]}"


@pytest.fixture
def run(taught) -> str:
    return str(taught.folder / "teacher")


@pytest.fixture
def copying(monkeypatch):
    """Replaces the search by one that gives the source back, so that lines can be told apart."""

    def search(self, batch):
        return Hypotheses([[Hypothesis(ids[:-1], -float(len(ids)))] * self.n_best for ids in batch])

    monkeypatch.setattr(Translator, "_search", search)


@pytest.fixture
def given(monkeypatch):
    """Puts bytes on standard input."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def spawn(*arguments, **streams) -> subprocess.Popen:
    command = [sys.executable, "-m", "fastkd", "translate", *arguments]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **streams}
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_odd_lines_keep_their_places(taught, run, copying, given, capfdbinary, caplog, end):
    lines = [number(0)]
    for count, line in enumerate(ODD, start=1):
        lines += [line, number(count)]
    text = (end or "\n").join(lines) + end
    given(text.encode())
    assert taught.run("translate", run, "--buffer", "7") == 0
    found = capfdbinary.readouterr().out.decode().split("\n")
    assert found.pop() == ""
    assert len(found) == len(lines)
    assert found[::2] == lines[::2]
    assert found[1] == found[3] == found[5] == ""
    assert all(found[2 * ODD.index(line) + 1] for line in ODD if "ein" in line)
    cut = 2 * ODD.index("ein " * 3000) + 2
    assert f"line {cut}: cut from" in caplog.text and "max_positions" in caplog.text


def test_the_model_itself_answers_odd_lines(taught, run, given, capfdbinary):
    given("\n".join([*ODD, "ein hund", ""]).encode())
    assert taught.run("translate", run, "--beam", "1") == 0
    assert capfdbinary.readouterr().out.count(b"\n") == len(ODD) + 1


def test_invalid_bytes_are_replaced(taught, run, copying, given, capfdbinary):
    given(b"ein\nein \xff\xfe\n\xc3\nhund\n")
    assert taught.run("translate", run, "--invalid", "replace") == 0
    found = capfdbinary.readouterr().out.decode().split("\n")
    assert found[0] == "ein" and found[3] == "hund" and found[4:] == [""]


def test_invalid_bytes_are_refused_after_the_lines_before_them(
    taught, run, copying, given, capfdbinary
):
    given(b"ein\nhund\nein \xff\nkatze\n")
    assert taught.run("translate", run) == 2
    out, error = capfdbinary.readouterr()
    assert out == b"ein\nhund\n"
    assert b"standard input: line 3 is not UTF-8" in error and error.count(b"\n") == 1


def test_a_failed_translation_leaves_no_output_file(taught, run, tmp_path, copying, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"ein\n\xff\n")
    assert taught.run("translate", run, "-i", str(source), "-o", str(output)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_many_lines_in_order(taught, run, tmp_path, copying):
    lines = [number(count) if count % 7 else "" for count in range(20_000)]
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert taught.run("translate", run, "-i", str(source), "-o", str(output)) == 0
    assert output.read_text(encoding="utf-8") == source.read_text(encoding="utf-8")


def test_a_million_lines_pass_in_bounded_memory(taught, run, tmp_path, monkeypatch):
    """Without model and tokenizer, whose work on a line does not depend on how many there are."""
    blocks, resident = [], []

    def swap(self, lines):
        blocks.append(len(lines))
        resident.append(psutil.Process().memory_info().rss)
        return [[Translation(line.swapcase(), 0.0)] for line in lines]

    monkeypatch.setattr(Translator, "translate", swap)
    source, output = tmp_path / "in", tmp_path / "out"
    text = "".join(f"line {count}\n" for count in range(1_000_000))
    source.write_text(text)
    expected = text.swapcase()
    assert taught.run("translate", run, "-i", str(source), "-o", str(output)) == 0
    assert output.read_text() == expected
    assert max(blocks) == 1024 and sum(blocks) == 1_000_000
    assert max(resident) - resident[0] < 16 << 20  # all lines at once are 60 MB


def test_n_best_and_scores_are_columns(taught, run, copying, given, capfdbinary):
    given(b"ein hund\n\nkatze\n")
    assert taught.run("translate", run, "--n-best", "2", "--scores") == 0
    rows = [line.split("\t") for line in capfdbinary.readouterr().out.decode().splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "3", "3"]
    assert [row[2] for row in rows] == ["ein hund", "ein hund", "", "katze", "katze"]
    assert all(float(row[1]) <= 0 for row in rows) and rows[2][1] == "0"
    given(b"ein hund\n")
    assert taught.run("translate", run, "--scores") == 0
    score, text = capfdbinary.readouterr().out.decode().rstrip("\n").split("\t")
    assert float(score) < 0 and text == "ein hund"


def test_n_best_of_the_model(taught, run, given, capfdbinary):
    given(b"ein hund\nden\n")
    assert taught.run("translate", run, "--n-best", "3", "--beam", "3", "--scores") == 0
    rows = [line.split("\t") for line in capfdbinary.readouterr().out.decode().splitlines()]
    first = [row for row in rows if row[0] == "1"]
    assert 1 < len(first) <= 3
    scores = [float(row[1]) for row in first]
    assert scores == sorted(scores, reverse=True)
    given(b"ein hund\nden\n")
    assert taught.run("translate", run, "--beam", "3") == 0
    best = capfdbinary.readouterr().out.decode().splitlines()
    assert best[0] == first[0][2]


def test_more_hypotheses_than_the_beam_are_refused(taught, run, given, capsys):
    given(b"ein\n")
    assert taught.run("translate", run, "--n-best", "3", "--beam", "2") == 2
    assert "--n-best 3: expected at most 2, the beam" in capsys.readouterr().err


def test_packed_output_can_be_read(taught, run, tmp_path, copying):
    source, output = tmp_path / "in.gz", tmp_path / "out.gz"
    source.write_bytes(gzip.compress(b"ein hund\nkatze\n"))
    assert taught.run("translate", run, "-i", str(source), "-o", str(output)) == 0
    assert gzip.decompress(output.read_bytes()) == b"ein hund\nkatze\n"


def test_a_terminal_is_answered_line_by_line(taught, run, copying, monkeypatch, capfdbinary):
    """Each line is read after the line before it was answered."""
    answered = []

    class Terminal(io.BytesIO):
        def isatty(self):
            return True

        def readline(self, size=-1):
            answered.append(capfdbinary.readouterr().out)
            return super().readline(size)

    stream = io.TextIOWrapper(Terminal(b"ein\nhund\nkatze\n"))
    monkeypatch.setattr(sys, "stdin", stream)
    assert taught.run("translate", run) == 0
    assert answered == [b"", b"ein\n", b"hund\n", b"katze\n"]


@pytest.mark.slow
def test_line_by_line_in_a_dialogue(run):
    process = spawn(run, "--buffer", "1", "--beam", "1")
    for line in (b"ein hund\n", b"\n", b"sieht den\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\n")
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out, error) == (0, b"", b"")


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it_quietly(run, tmp_path):
    source = tmp_path / "in"
    source.write_text("ein hund\n" * 50_000)
    process = spawn(run, "-i", str(source), "--buffer", "64", "--beam", "1")
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=240) == 1
    assert b"fastkd" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(run):
    with open("/dev/full", "wb") as full:
        process = spawn(run, "--beam", "1", stdout=full)
        _, error = process.communicate(b"ein hund\n", timeout=240)
    assert process.returncode == 1
    assert error == b"fastkd: standard output: No space left on device\n"


@pytest.mark.slow
def test_closed_standard_input(run):
    process = spawn(run, preexec_fn=lambda: os.close(0))
    _, error = process.communicate(timeout=240)
    assert process.returncode == 2
    assert b"standard input" in error and error.count(b"\n") == 1
