"""Several processes that train together, over gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

LOSSES = [
    {"name": "cross_entropy"},
    {"name": "tie_kd"},
    {"name": "a2d"},
    {"name": "hidden"},
]


def train(processes, config, *overrides):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    port = ["--master-port", str(20000 + os.getpid() % 20000)]
    command = [*launcher, *port, "-m", "fastkd", "train", config, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def log(folder):
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_log(one, other):
    assert len(one) == len(other)
    for record, expected in zip(one, other, strict=True):
        assert record.keys() == expected.keys()
        for key in record.keys() - {"tokens_per_second"}:
            assert record[key] == pytest.approx(expected[key], rel=2e-4, abs=1e-5), key


@pytest.fixture(scope="module")
def config(taught, tmp_path_factory):
    """Writes a student's config, with every method and no dropout, for a run of a given name."""
    folder = tmp_path_factory.mktemp("runs")

    def write(name, **training):
        path = taught.config(
            f"processes-{name}",
            run=str(folder / name),
            model={"dropout": 0.0},
            training={"updates": 4, "save_every": 2, **training},
            teacher={"run": str(taught.folder / "teacher")},
            losses=LOSSES,
        )
        return path, folder / name

    return write


@pytest.fixture(scope="module")
def alone(taught, config):
    path, folder = config("alone")
    assert taught.run("train", path) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 2), (4, 1)])
def test_processes_compute_what_one_does(config, alone, processes, accumulation):
    path, folder = config(f"together{processes}", accumulation=accumulation)
    train(processes, path)
    assert_same_log(log(folder), log(alone))


@pytest.mark.slow
def test_stopped_with_two_goes_on_with_one(taught, config, alone):
    path, folder = config("changed")
    train(2, path, "training.updates=2")
    assert taught.run("train", path) == 0
    assert_same_log(log(folder), log(alone))
    first, one, other = (
        load_file(run / "checkpoints" / f"{update:08d}" / "model.safetensors")
        for run, update in ((alone, 2), (folder, 4), (alone, 4))
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-5)
    assert max((tensor - first[name]).abs().max() for name, tensor in one.items()) > 1e-3
