"""Runs that are killed, or whose disk fails, lose nothing."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastkd.__main__ import main

UPDATES = 40
TRAINING = {
    "updates": UPDATES,
    "save_every": 2,
    "validate_every": 10,
    "ema": 0.9,
    "keep_last": 3,
    "bleu_sentences": 2,
}


def final_weights(folder, updates):
    return load_file(folder / "checkpoints" / f"{updates:08d}" / "model.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def train(config):
    torch.set_num_threads(1)
    os._exit(main(["train", config]))


@pytest.fixture(scope="module")
def straight(taught, tmp_path_factory):
    """The final weights of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    config = taught.config("straight", run=str(folder), training=TRAINING)
    assert taught.run("train", config) == 0
    return final_weights(folder, UPDATES)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(taught, tmp_path, straight):
    folder = tmp_path / "run"
    config = taught.config("killed", run=str(folder), training=TRAINING)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fastkd.cli.train", "fastkd.train.start"])
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
        assert_equal(final_weights(folder, UPDATES), straight)
        shutil.rmtree(folder)
    assert main(["train", config]) == 0
    assert_equal(final_weights(folder, UPDATES), straight)


def test_terminated_run_saves_and_ends_well(taught, tmp_path, straight):
    folder = tmp_path / "run"
    config = taught.config("terminated", run=str(folder), training={**TRAINING, "save_every": 1000})
    processes = multiprocessing.get_context("forkserver")
    process = processes.Process(target=train, args=(config,))
    process.start()
    deadline = time.monotonic() + 60
    while not (folder / "log.jsonl").is_file() or not (folder / "log.jsonl").stat().st_size:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    assert list((folder / "checkpoints").glob("[0-9]*"))
    assert main(["train", config]) == 0
    assert_equal(final_weights(folder, UPDATES), straight)


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
    assert_equal(final_weights(folder, UPDATES), straight)


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
    """Lets `count` writes through and then fails them all, as a full disk does."""

    CALLS = (
        ("pathlib.Path", "write_text"),
        ("pathlib.Path", "mkdir"),
        ("pathlib.Path", "rename"),
        ("pathlib.Path", "unlink"),
        ("os", "fsync"),
        ("fastkd.runs.checkpoint", "save_file"),
    )

    def __init__(self, monkeypatch, count):
        self.left, self.failed = count, False
        for place, name in self.CALLS:
            self._wrap(monkeypatch, f"{place}.{name}")

    def _wrap(self, monkeypatch, target):
        place, name = target.rsplit(".", 1)
        module = __import__(place.removesuffix(".Path"), fromlist=["x"])
        holder = module.Path if place.endswith(".Path") else module
        real = getattr(holder, name)

        def failing(*arguments, **options):
            if self.left <= 0:
                self.failed = True
                if name == "save_file":  # as safetensors tells it
                    raise SafetensorError("I/O error: No space left on device (os error 28)")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= 1
            return real(*arguments, **options)

        monkeypatch.setattr(holder, name, failing)


@pytest.mark.slow
def test_disk_that_fills_up_at_any_write(taught, tmp_path, capsys):
    training = {**TRAINING, "updates": 6, "validate_every": 3}
    calm = taught.config("calm", run=str(tmp_path / "calm"), training=training)
    assert taught.run("train", calm) == 0
    expected = final_weights(tmp_path / "calm", 6)
    count, failed = 0, True
    while failed:
        folder = tmp_path / f"run{count}"
        config = taught.config(f"full{count}", run=str(folder), training=training)
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
        assert_equal(final_weights(folder, 6), expected)
        count += 1
    assert count > 20
