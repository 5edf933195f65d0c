"""Several processes that train together, over gloo."""

import shutil
import time

import pytest
import torch

from tests.cli.conftest import TRAINING, checkpoint, position
from tests.cli.logs import assert_same_log, log
from tests.cli.torchrun import start, train

LOSSES = [
    {"name": "cross_entropy"},
    {"name": "tie_kd"},
    {"name": "a2d"},
    {"name": "hidden"},
]


def assert_same_checkpoint(folder, alone):
    """Both are of update 4, equal but for rounding, which is far less than what training did."""
    one, other, before = checkpoint(folder, 4), checkpoint(alone, 4), checkpoint(alone, 2)
    assert [(n, t.shape, t.dtype) for n, t in one.items()] == [
        (n, t.shape, t.dtype) for n, t in other.items()
    ]
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)
    assert max((tensor - before[name]).abs().max() for name, tensor in one.items()) > 1e-3


@pytest.fixture(scope="module")
def config(taught, tmp_path_factory):
    """Writes a student's config, with every method and no dropout, for a run of a given name."""
    folder = tmp_path_factory.mktemp("runs")
    optimizer = {**TRAINING["optimizer"], "clip": 3.0}  # which binds in the first updates

    def write(name, **training):
        path = taught.config(
            f"processes-{name}",
            run=str(folder / name),
            model={"dropout": 0.0},
            training={"updates": 4, "save_every": 2, "ema": 0.9, "optimizer": optimizer} | training,
            teacher={"run": str(taught.folder / "teacher")},
            losses=LOSSES,
        )
        return path, folder / name

    return write


@pytest.fixture(scope="module")
def alone(taught, config):
    path, folder = config("alone")
    assert taught.run("train", path) == 0
    norms = [record["grad_norm"] for record in log(folder) if "grad_norm" in record]
    assert min(norms) < 3.0 < max(norms)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "accumulation", "sharding"),
    [(2, 2, "none"), (4, 1, "none"), (2, 2, "fully_shard"), (4, 1, "fully_shard")],
)
def test_processes_compute_what_one_does(config, alone, processes, accumulation, sharding):
    name = f"together-{processes}-{sharding}"
    path, folder = config(name, accumulation=accumulation, sharding=sharding)
    train(processes, path)
    assert_same_log(log(folder), log(alone))
    assert_same_checkpoint(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fully_shard"])
def test_stopped_with_two_goes_on_with_one(taught, config, alone, sharding):
    path, folder = config(f"fewer-{sharding}", sharding=sharding)
    train(2, path, "training.updates=2")
    assert taught.run("train", path) == 0
    assert_same_log(log(folder), log(alone))
    assert_same_checkpoint(folder, alone)


@pytest.mark.slow
def test_with_dropout_as_many_processes_compute_the_same_bits(config):
    dropout = "model.dropout=0.3"
    path, whole = config("whole")
    train(2, path, dropout)
    path, halves = config("halves")
    train(2, path, dropout, "training.updates=2")
    train(2, path, dropout)
    one, other = checkpoint(whole, 4), checkpoint(halves, 4)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert position(whole, 4) == position(halves, 4)


@pytest.mark.slow
def test_stopped_with_one_goes_on_with_two_that_share(taught, config, alone):
    path, folder = config("more", sharding="fully_shard")
    assert taught.run("train", path, "training.updates=2") == 0
    train(2, path)
    assert_same_log(log(folder), log(alone))
    assert_same_checkpoint(folder, alone)


DIES = """
import os, signal
from fastkd.train.trainer import Trainer
update = Trainer._update
def dying(self, *arguments):
    if self.ranks.rank == {rank} and self.position.update == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *arguments)
Trainer._update = dying
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "sharding"), [(1, "none"), (0, "none"), (1, "fully_shard")])
def test_a_process_that_dies_ends_the_run_which_can_go_on(config, alone, rank, sharding):
    path, folder = config(f"dies-{rank}-{sharding}", sharding=sharding)
    run = start(2, path, code=DIES.format(rank=rank))
    _, error = run.communicate(timeout=400)
    assert run.returncode == 1
    told = [line for line in error.splitlines() if line.startswith("fastkd: ")]
    assert any("another process" in line and "goes on from" in line for line in told), error
    train(2, path)
    assert_same_log(log(folder), log(alone))
    assert_same_checkpoint(folder, alone)


STOPS = """
import os, signal
from fastkd.train.trainer import Trainer
update = Trainer._update
def stopping(self, *arguments):
    if self.ranks.rank == {rank} and self.position.update == 3:
        sys.stderr.write(f"STOPPED {{os.getpid()}}\\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSTOP)
    return update(self, *arguments)
Trainer._update = stopping
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "sharding"), [(1, "none"), (0, "fully_shard")])
def test_a_process_that_stops_is_named_and_ends_the_run(config, alone, rank, sharding):
    path, folder = config(f"stops-{rank}-{sharding}", sharding=sharding, process_timeout=15.0)
    run = start(2, path, code=STOPS.format(rank=rank))
    _, error = run.communicate(timeout=400)
    assert run.returncode == 1
    (stopped,) = (line.split()[1] for line in error.splitlines() if line.startswith("STOPPED"))
    (told,) = (line for line in error.splitlines() if "has not answered for 15 s" in line)
    assert told.startswith(f"fastkd: process {1 - rank}: process {rank} (")
    assert f"pid {stopped})" in told and "goes on from" in told
    train(2, path)
    assert_same_log(log(folder), log(alone))
    assert_same_checkpoint(folder, alone)


@pytest.mark.slow
def test_terminated_processes_save_and_can_go_on(config, alone):
    path, folder = config("terminated", save_every=1000)
    run = start(2, path, "training.updates=100000")
    deadline = time.monotonic() + 300
    while not (folder / "log.jsonl").is_file() or len(log(folder)) < 1:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    run.terminate()
    _, error = run.communicate(timeout=400)
    assert "stopped; the same command goes on" in error
    (saved,) = (int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))
    train(2, path, f"training.updates={saved + 1}")
    steps = [record["step"] for record in log(folder) if "loss" in record]
    assert steps == list(range(1, saved + 2))


OTHER = """
import os
from dataclasses import replace
from fastkd.runs.folder import RunFolder
read = RunFolder.read_weights
def replaced(self, *arguments):
    weights = read(self, *arguments)
    if os.environ["RANK"] == "1" and self.path.name == "{run}":
        checksums = {{**weights.meta["sha256"], "model.safetensors": "of another checkpoint"}}
        weights = replace(weights, meta={{**weights.meta, "sha256": checksums}})
    return weights
RunFolder.read_weights = replaced
"""


@pytest.mark.slow
@pytest.mark.parametrize(("key", "name"), [("teacher", "teacher"), ("start", "begin")])
def test_processes_that_read_different_weights_do_not_train(taught, config, tmp_path, key, name):
    path, folder = config(f"different-{key}")
    begin = shutil.copytree(taught.folder / "teacher", tmp_path / "begin")
    run = start(2, path, f"start.run={begin}", code=OTHER.format(run=name))
    try:
        _, error = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 1
    assert f"fastkd: {key}: the processes of this run have read different files" in error
    assert not folder.exists()


OUTLIVED = """
import gc
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

destroy = dist.destroy_process_group

def destroyed():
    alive = [o for o in gc.get_objects() if isinstance(o, DistributedDataParallel)]
    sys.stderr.write(f"DESTROYED WITH {len(alive)}\\n")
    destroy()

dist.destroy_process_group = destroyed
"""


def test_the_group_of_processes_outlives_what_uses_it(config):
    """Else whether they end is a race: the last owner would join a thread that it holds up."""
    path, _ = config("outlived", updates=1)
    run = start(2, path, code=OUTLIVED)
    try:
        _, error = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, error[-3000:]
    assert error.count("DESTROYED WITH 0") == 2
