"""Whoever reads a verb's output may leave: no file is lost by it."""

import io
import os
import shutil
import subprocess
import sys

import pytest

from fastkd.__main__ import main
from fastkd.cli.streams import Enduring

BENCH = "bench --op linear-ce --device cpu --shapes smoke --seconds 0 --no-memory"


@pytest.fixture
def unread(monkeypatch):
    """Standard output whose reader has left."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    yield stream
    stream.close()


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (f"{BENCH} --against reference,torch --out {{out}}", ["cpu.csv", "linear-ce-cpu.png"]),
        ("compare {run} {run} --samples 0 --output {out}/page.html", ["page.html"]),
        ("score {copy} dev --beam 1 --output {out}/dev", ["dev", "copy/scores.json"]),
        ("memory {config} --predict 1GiB --no-largest --plot {out}/a.png", ["a.png"]),
        ("cache-teacher {run} dev --top-k 4 --output {out}/cache", ["cache/meta.json"]),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_files_are_written_all_the_same(taught, tmp_path, unread, capfd, command, files):
    run = taught.folder / "teacher"
    copy = shutil.copytree(run, tmp_path / "copy")
    places = {"out": tmp_path, "run": run, "copy": copy, "config": taught.folder / "teacher.yaml"}
    assert main(command.format(**places).split()) == 0
    assert all((tmp_path / file).stat().st_size for file in files)
    assert "Broken" not in capfd.readouterr().err


@pytest.mark.slow
def test_training_goes_on_when_nobody_reads_on(shop):
    config = shop.config("run")
    assert shop.run("prepare", config) == 0
    command = [sys.executable, "-m", "fastkd", "train", config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.close()
    assert process.wait(timeout=240) == 0
    assert (shop.folder / "run" / "checkpoints" / "00000004").is_dir()


def test_a_full_disk_is_still_told():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Enduring(Full()).write("text")
