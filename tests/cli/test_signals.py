"""What a signal leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastkd.__main__ import main
from fastkd.cli.signals import cleaning_up
from fastkd.demo import run as demo
from fastkd.train import validation
from fastkd.train.interrupt import TERMINATING, StopRequest
from fastkd.train.log import read_log
from fastkd.train.trainer import Trainer
from tests.cli.conftest import checkpoint, position


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_verb_leaves_nothing(taught, tmp_path, number):
    """Waits for its input, with the temporary output there."""
    run, output = str(taught.folder / "teacher"), str(tmp_path / "out.txt")
    command = [sys.executable, "-m", "fastkd", "translate", run, "-o", output]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == -number
        assert process.stderr is not None and process.stderr.read() == b""
    assert not list(tmp_path.iterdir())


SWALLOWED = """
import contextlib, os, signal, sys
from fastkd.__main__ import main
from fastkd.decode.translate import Translator

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell sends behind

def translate(*arguments):
    with contextlib.suppress(BaseException):  # as an extension does that raises its own
        os.kill(os.getpid(), int(sys.argv[1]))
    raise ValueError("could not determine the shape of an object")

Translator.translate = translate
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)]
)
def test_an_error_in_place_of_a_signal_is_the_signal(taught, tmp_path, number, status):
    run, text = str(taught.folder / "teacher"), str(taught.folder / "test.de")
    command = [sys.executable, "-c", SWALLOWED, str(int(number)), "translate", run, "-i", text]
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == status and not list(tmp_path.iterdir())
    assert done.stderr.strip() == ("" if number == signal.SIGTERM else "fastkd: interrupted")


MEASURING = """
import os, signal, sys
from pathlib import Path
import fastkd.bench.arguments
from fastkd.__main__ import main as run
from fastkd.files import temporary_folder

signal.signal(signal.SIGINT, signal.default_int_handler)

def bench(arguments):
    with temporary_folder(Path(arguments[0]), "rows"):
        os.kill(os.getpid(), int(sys.argv[1]))

fastkd.bench.arguments.bench = bench
sys.exit(run(["bench", sys.argv[2]]))
"""


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGTERM, -signal.SIGTERM, ""), (signal.SIGINT, 1, "fastkd: interrupted")],
)
def test_a_benchmark_that_is_ended_leaves_nothing(tmp_path, number, status, said):
    command = [sys.executable, "-c", MEASURING, str(int(number)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (status, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyboardInterrupt, "interrupted"), (OSError(24, "Too many open files"), "Too many open")],
)
def test_what_ends_a_verb_before_it_begins_is_told(monkeypatch, capsys, error, said):
    def ended(name):
        raise error

    monkeypatch.setattr("importlib.metadata.version", ended)
    assert main(["train", "x.yaml"]) == 1
    assert capsys.readouterr().err.startswith(f"fastkd: {said}")


def test_a_demo_that_is_stopped_ends_as_training_does(monkeypatch, tmp_path):
    """At 0.1 with 0, so that what waits for it goes on."""
    stopped = SimpleNamespace(train=lambda: None, finished=False, stopped_by=signal.SIGTERM)
    monkeypatch.setattr(demo, "start", lambda config, prepared: stopped)
    monkeypatch.setattr(demo, "open_prepared", lambda config: None)
    for name in ("write_demo_corpus", "tell_estimate"):
        monkeypatch.setattr(demo, name, lambda *arguments: None)
    assert main(["demo", "--out", str(tmp_path)]) == 128 + signal.SIGTERM


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop, cleaning_up():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_statuses_of_what_stops_training_are_listed():
    statuses = {str(128 + number) for number in (*TERMINATING, signal.SIGINT)}
    page = Path(__file__).parents[2] / "docs" / "environment.md"
    rows = [line.split("|")[1] for line in page.read_text("utf-8").splitlines() if "|" in line]
    assert statuses in [set(row.replace(",", " ").split()) for row in rows]
    assert statuses <= set(re.findall(r"\d+", main.__doc__))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_during_validation(taught, tmp_path, number, monkeypatch, capsys):
    """Is obeyed at the next batch, after a checkpoint; what follows is as without it."""
    runs = {}
    for name in ("straight", "stopped"):
        runs[name] = tmp_path / name
        settings = {"updates": 4, "validate_every": 2, "log_every": 3, "save_every": 100}
        config = taught.config(name, run=str(runs[name]), training=settings)
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(validation, "translate", during(number))
                assert taught.run("train", config) == 128 + number
            meta = json.loads((runs[name] / "checkpoints" / "00000002" / "meta.json").read_text())
            assert meta["unvalidated"] and meta["best_update"] is None
            assert "dev_loss" not in (runs[name] / "log.jsonl").read_text()
        assert taught.run("train", config) == 0
    straight, stopped = runs.values()
    assert position(straight, 4) == position(stopped, 4)
    tensors = checkpoint(straight, 4), checkpoint(stopped, 4)
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    logs = [
        [{**record, "time": 0, "tokens_per_second": 0} for record in read_log(run / "log.jsonl")]
        for run in (straight, stopped)
    ]
    assert logs[0] == logs[1]


def during(number):
    """A translation that a signal meets."""

    def translated(model, tokenizers, lines, config, device, progress):
        os.kill(os.getpid(), number)
        progress(1)
        raise AssertionError("it should have stopped")

    return translated


def test_the_figures_between_two_logged_steps_survive_a_stop(taught, tmp_path):
    """A record's means are over the same updates, wherever the run was stopped."""
    logs = []
    for name, steps in (("straight", ["4"]), ("stopped", ["1", "2", "3", "4"])):
        settings = {"validate_every": 100, "log_every": 4, "bleu_sentences": 0, "save_every": 1}
        config = taught.config(name, run=str(tmp_path / name), training=settings)
        for last in steps:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Trainer, "_update", stopping_at(int(last), Trainer._update))
                expected = 0 if last == "4" else 128 + signal.SIGTERM
                assert taught.run("train", config) == expected
        records = read_log(tmp_path / name / "log.jsonl")
        logs.append([{**r, "time": 0, "tokens_per_second": 0} for r in records])
    assert logs[0] == logs[1]


def stopping_at(last, real):
    def update(self, ids, epoch):
        real(self, ids, epoch)
        if self.position.update + 1 == last < 4:
            os.kill(os.getpid(), signal.SIGTERM)

    return update
