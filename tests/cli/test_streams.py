"""Whoever reads a verb's output may leave: no file is lost by it."""

import errno
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import termios

import pytest

from fastkd.__main__ import main
from fastkd.cli.app import group
from fastkd.cli.streams import Enduring
from fastkd.train.log import read_log

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


TRAINING = """
import os, sys, time
from pathlib import Path
import click
from fastkd.cli.status import ended
from fastkd.errors import Stopped
from fastkd.train.interrupt import StopRequest, terminating
from fastkd.train.log import RunLog

path, awaited = Path(sys.argv[1]), int(sys.argv[2])

def work():
    with StopRequest() as stop, RunLog(path, 0, 2) as log:
        log.say("begun")
        while os.isatty(2) or (awaited and not stop):
            time.sleep(0.01)
        log.advance(1)
        log.figures(1, "loss 2.5")
        log.write({"step": 1, "dev_loss": 2.5})
        log.say("validated")
        print("on standard output", flush=True)
    click.echo("ends", err=True)
    if stop.number:
        raise Stopped(stop.number)
    return 0

sys.exit(ended(work))
"""


@pytest.mark.parametrize(
    ("gone_before", "handler", "status"),
    [
        (False, signal.SIG_DFL, 128 + signal.SIGHUP),
        (False, signal.SIG_IGN, 0),
        (True, signal.SIG_DFL, 0),
    ],
    ids=["hung up", "ignored", "gone before it began"],
)
def test_a_terminal_that_is_gone_costs_nothing(tmp_path, gone_before, handler, status):
    """What is written there then fails with EIO, which ended training with 1, unvalidated."""
    ours, theirs = os.openpty()

    def at_the_terminal():
        signal.signal(signal.SIGHUP, handler)
        if not gone_before:
            fcntl.ioctl(2, termios.TIOCSCTTY, 0)

    if gone_before:
        os.close(ours)
    awaited = not gone_before and handler == signal.SIG_DFL
    command = [sys.executable, "-c", TRAINING, str(tmp_path / "log.jsonl"), str(int(awaited))]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=at_the_terminal,
    ) as process:
        os.close(theirs)
        if not gone_before:
            said = b""
            while b"begun" not in said:
                said += os.read(ours, 4096)
            os.close(ours)
        assert process.wait(timeout=120) == status
    assert [record["dev_loss"] for record in read_log(tmp_path / "log.jsonl")] == [2.5]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_a_disk_refuses_is_still_told(tmp_path, number):
    class Refusing(io.TextIOWrapper):
        def write(self, text):
            raise OSError(number, "refused")

    for file in (io.BytesIO(), open(tmp_path / "said", "wb")):  # noqa: SIM115
        with Refusing(file) as stream, pytest.raises(OSError, match="standard output"):
            Enduring(stream, "standard output").write("text")


def test_streams_are_held_once(monkeypatch):
    held = []
    monkeypatch.setattr(group, "main", lambda *arguments, **options: held.append(sys.stdout))
    assert main(["runs"]) == 0
    assert isinstance(held[0], Enduring) and not isinstance(held[0]._stream, Enduring)
