"""The examples as they stand: each ends, and its student has learned from its teacher."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "own_loop": "torch",
    "with_transformers": "accelerate",
    "with_accelerate": "accelerate",
    "with_lightning": "lightning",
}
MANY = {"sharded_loop": "transformers"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name):
    pytest.importorskip(SCRIPTS[name])
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert_learned(done)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_example_of_two_processes(name):
    pytest.importorskip(MANY[name])
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    assert_learned(launched(*launcher, str(EXAMPLES / f"{name}.py")))


FSDP2 = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
    "--fsdp_cpu_ram_efficient_loading false"
)


@pytest.mark.slow
@pytest.mark.parametrize("divided", [False, True])
def test_accelerate_launch(divided):
    """Two processes of DistributedDataParallel, and two that FSDP2 divides a tied model over."""
    pytest.importorskip("accelerate")
    launcher = ["accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", free_port()]
    launcher += FSDP2.split() if divided else ["--multi_gpu"]
    script = str(EXAMPLES / "with_accelerate.py")
    done = launched(*launcher, *(("--module", "tests.examples.on_cpu") if divided else ()), script)
    assert_learned(done)


def launched(*module_and_arguments):
    """On CPUs alone, one thread each."""
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, "-m", *module_and_arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=EXAMPLES.parent,
        env={**os.environ, **settings},
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def assert_learned(done):
    assert done.returncode == 0, done.stderr[-3000:]
    teacher, student = re.search(r"teacher ([\d.]+)%, student ([\d.]+)%", done.stdout).groups()
    assert float(teacher) > 80 and float(student) > 80
