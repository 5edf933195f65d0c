"""The examples as they stand: each ends, and its student has learned from its teacher."""

import os
import re
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
    port = str(20000 + os.getpid() % 20000)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert_learned(done)


def assert_learned(done):
    assert done.returncode == 0, done.stderr[-3000:]
    teacher, student = re.search(r"teacher ([\d.]+)%, student ([\d.]+)%", done.stdout).groups()
    assert float(teacher) > 80 and float(student) > 80
