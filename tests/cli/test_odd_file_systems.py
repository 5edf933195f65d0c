"""File systems that lack what a disk has: locks, folders that can be waited for, exchanges."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys

import pytest

import fastkd.files

VERBS = ["prepare", "train", "average", "score", "distill", "export", "cache-teacher"]


def slow(number):
    return pytest.param(number, marks=pytest.mark.slow)


@pytest.fixture
def commands(taught, tmp_path):
    """Each verb that writes folders, over the taught workshop and a run in `tmp_path`."""
    config, run = taught.config("odd", run=str(tmp_path / "run")), str(taught.folder / "teacher")
    return {
        "prepare": ["prepare", config, f"data.prepared={tmp_path / 'prepared'}"],
        "train": ["train", config, "training.updates=2"],
        "average": ["average", str(tmp_path / "run")],
        "score": ["score", str(tmp_path / "run"), "test"],
        "distill": ["distill", run, str(tmp_path / "text")],
        "export": ["export", run, "--to", "transformers", str(tmp_path / "exported")],
        "cache-teacher": [
            "cache-teacher",
            run,
            "train",
            "--top-k",
            "4",
            "-o",
            str(tmp_path / "cache"),
        ],
    }


def refusing(number):
    def refused(*arguments):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, *map(slow, (errno.ENOTSUP, errno.EINVAL, errno.ENOSYS))]
)
def test_work_goes_on_without_locks(taught, commands, number, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    for verb in VERBS:
        assert taught.run(*commands[verb]) == 0, verb
    told = [r.message for r in caplog.records if "cannot be locked" in r.message]
    assert len(told) == (0 if number == errno.ENOSYS else 2)  # of training and of distilled text


def test_a_killed_run_leaves_no_lock_where_there_are_none(taught, commands):
    """Where the lock is a file that is there or is not, it is that of a process that is gone."""
    code = (
        "import errno, fcntl, os, signal, sys\n"
        "def refused(*arguments):\n"
        "    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
        "fcntl.flock = refused\n"
        "from fastkd.train.trainer import Trainer\n"
        "if sys.argv[1] == 'killed':\n"
        "    Trainer.save = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from fastkd.__main__ import main\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    run = [sys.executable, "-c", code]
    killed = subprocess.run([*run, "killed", *commands["train"]], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run([*run, "whole", *commands["train"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "falling back" not in done.stderr


@pytest.mark.parametrize("number", [errno.EINVAL, *map(slow, (errno.EBADF, errno.ENOTSUP))])
def test_folders_that_cannot_be_waited_for(taught, commands, number, monkeypatch):
    """As with CIFS and some of FUSE; files are waited for all the same."""
    wait, waited = os.fsync, []

    def fsync(file):
        descriptor = file if isinstance(file, int) else file.fileno()
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        waited.append(descriptor)
        wait(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for verb in VERBS:
        assert taught.run(*commands[verb]) == 0, verb
    assert waited


def test_a_file_that_cannot_be_waited_for_is_named(taught, commands, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    for verb in ("prepare", "train", "distill", "export", "cache-teacher"):
        assert taught.run(*commands[verb]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("fastkd: /") and line.endswith(os.strerror(errno.EIO)), verb


def test_folders_are_replaced_without_an_exchange(taught, commands, monkeypatch):
    monkeypatch.setattr(fastkd.files, "_renameat2", lambda: None)
    for _ in range(2):
        for verb in VERBS:
            assert taught.run(*commands[verb]) == 0, verb
