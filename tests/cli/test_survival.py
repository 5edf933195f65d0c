"""Runs that are killed, or whose disk fails, lose nothing."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import fastkd.tensors
from fastkd import files
from fastkd.__main__ import main
from fastkd.train.log import read_log
from tests.cli.conftest import checkpoint, position

UPDATES = 40
TRAINING = {
    "updates": UPDATES,
    "save_every": 2,
    "validate_every": 10,
    "ema": 0.9,
    "keep_last": 3,
    "bleu_sentences": 2,
    "patience": 100,
}


def final(folder, updates=UPDATES):
    """All that a run ends with: its state, the weights it found best, and what it logged."""
    place = position(folder, updates)
    saved = checkpoint(folder, place["best_update"])
    best = {name: tensor for name, tensor in saved.items() if name.startswith("model ")}
    log = [{**r, "tokens_per_second": 0, "time": 0} for r in read_log(folder / "log.jsonl")]
    return checkpoint(folder, updates), best, place, log


def assert_equal(one, other):
    for tensors, others in zip(one[:2], other[:2], strict=True):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert one[2:] == other[2:]


def forks():
    """Starts processes that have everything imported."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fastkd.cli.train", "fastkd.train.start"])
    return processes


def train(config):
    torch.set_num_threads(1)
    os._exit(main(["train", config]))


@pytest.fixture(scope="module")
def straight(taught, tmp_path_factory):
    """How a run ends that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    config = taught.config("straight", run=str(folder), training=TRAINING)
    assert taught.run("train", config) == 0
    return final(folder)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(taught, tmp_path, straight):
    folder = tmp_path / "run"
    config = taught.config("killed", run=str(folder), training=TRAINING)
    processes = forks()
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    kills = 0
    while kills < 20:
        process = processes.Process(target=train, args=(config,))
        process.start()
        process.join(moments.uniform(0.05, 1.5))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0
        assert_equal(final(folder), straight)
        shutil.rmtree(folder)
    assert main(["train", config]) == 0
    assert_equal(final(folder), straight)


def test_terminated_run_saves_and_ends_well(taught, tmp_path, straight):
    folder = tmp_path / "run"
    config = taught.config("terminated", run=str(folder), training={**TRAINING, "save_every": 1000})
    process = forks().Process(target=train, args=(config,))
    process.start()
    deadline = time.monotonic() + 300
    while not (folder / "log.jsonl").is_file() or not (folder / "log.jsonl").stat().st_size:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(300)
    assert process.exitcode == 128 + signal.SIGTERM
    assert list((folder / "checkpoints").glob("[0-9]*"))
    assert main(["train", config]) == 0
    assert_equal(final(folder), straight)


def test_a_run_in_training_refuses_a_second_writer(taught, tmp_path, straight, capsys):
    folder = tmp_path / "run"
    config = taught.config("twice", run=str(folder), training=TRAINING)
    process = forks().Process(target=train, args=(config,))
    process.start()
    deadline = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("[0-9]*")):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    capsys.readouterr()
    assert main(["train", config]) == 2
    told = capsys.readouterr().err
    assert f"{folder}: another process trains this run; wait for it, or give" in told
    assert told.count("\n") == 1
    process.kill()
    process.join()
    assert main(["train", config]) == 0
    assert_equal(final(folder), straight)


def damage(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "meta.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(taught, tmp_path, straight, caplog, name):
    folder = tmp_path / "run"
    config = taught.config("damaged", run=str(folder), training=TRAINING)
    assert taught.run("train", config, "training.updates=10") == 0
    damage(folder / "checkpoints" / "00000010" / name)
    assert taught.run("train", config) == 0
    assert name in caplog.text and "going back to the checkpoint before" in caplog.text
    assert_equal(final(folder), straight)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(taught, tmp_path, capsys):
    folder = tmp_path / "run"
    config = taught.config("ruined", run=str(folder), training=TRAINING)
    assert taught.run("train", config, "training.updates=10") == 0
    log = (folder / "log.jsonl").read_bytes()
    for file in folder.glob("checkpoints/*/state.safetensors"):
        damage(file)
    assert taught.run("train", config) == 2
    assert "no checkpoint is whole" in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "log.jsonl").read_bytes() == log


class FailingDisk:
    """Lets `count` calls that write through; after that each fails half-way, as on a full disk."""

    CALLS = (
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "unlink"),
        (os, "fsync"),
        (files, "open"),
        (fastkd.tensors, "save_file"),
    )

    def __init__(self, patch, count):
        self.left, self.failed = count, False
        for holder, name in self.CALLS:
            patch.setattr(holder, name, self._failing(getattr(holder, name, open)), raising=False)

    def _failing(self, real):
        def call(*arguments, **options):
            self.left -= 1
            if self.left >= 0:
                return real(*arguments, **options)
            self.failed = True
            if real is open:
                real(*arguments, **options).write(b"{")
            if real.__name__ == "save_file":
                real(*arguments, **options)
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            return self.fail(real.__name__)

        return call

    def fail(self, name):
        if name == "save_file":  # as safetensors tells it
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class KillingDisk(FailingDisk):
    """One where the process is killed half-way."""

    def fail(self, name):
        os.kill(os.getpid(), signal.SIGKILL)


SHORT = {**TRAINING, "updates": 3, "save_every": 1, "validate_every": 3, "keep_last": 2}


@pytest.fixture(scope="module")
def short(taught, tmp_path_factory):
    """How a shorter run ends that nothing disturbed."""
    folder = tmp_path_factory.mktemp("short")
    assert taught.run("train", taught.config("short", run=str(folder), training=SHORT)) == 0
    return final(folder, 3)


@pytest.mark.slow
def test_disk_that_fills_up_at_any_write(taught, tmp_path, capsys, short):
    count, failed = 0, True
    while failed:
        folder = tmp_path / f"run{count}"
        config = taught.config(f"full{count}", run=str(folder), training=SHORT)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, count)
            status = taught.run("train", config)
            failed = disk.failed
        assert status == (1 if failed else 0)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        if status:
            *_, line = error.splitlines()
            assert "FASTKD_TRACEBACK" not in line and "No space left" in line
        assert taught.run("train", config) == 0
        assert_equal(final(folder, 3), short)
        count += 1
    assert count > 50


def train_until_killed(config, count):
    with pytest.MonkeyPatch.context() as patch:
        KillingDisk(patch, count)
        train(config)


@pytest.mark.slow
def test_killed_in_any_write(taught, tmp_path, short):
    processes = forks()
    count, killed = 0, True
    while killed:
        folder = tmp_path / f"run{count}"
        config = taught.config(f"killed{count}", run=str(folder), training=SHORT)
        process = processes.Process(target=train_until_killed, args=(config, count))
        process.start()
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        assert killed or process.exitcode == 0
        assert taught.run("train", config) == 0
        assert_equal(final(folder, 3), short)
        count += 1
    assert count > 50
