"""Models divided by FSDP2: several processes compute what one does, however the models are cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]
# Sums of other orders, over two updates; in bfloat16 each process rounds its gradients.
BOUND = {"float32": 1e-4, "bfloat16": 8 * torch.finfo(torch.bfloat16).eps}


def differences(folder, processes, which, timeout):
    """By case and update, the largest relative difference from one process."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.integrations.sharded"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [*command, str(folder), which],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        told = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, told[0][-3000:]
    return json.loads((folder / "found.json").read_text())


def assert_equal_to_one(found, least):
    assert len(found) >= least
    wrong = {
        name: values
        for name, values in found.items()
        if not all(
            isinstance(value, float)
            and value < BOUND["bfloat16" if "bfloat16" in name else "float32"]
            for value in values
        )
    }
    assert not wrong, json.dumps(wrong, indent=1)


def test_two_processes_compute_what_one_does(tmp_path):
    assert_equal_to_one(differences(tmp_path, 2, "few", 300), 4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_layout(tmp_path, processes):
    assert_equal_to_one(differences(tmp_path, processes, "all", 1500), 70)
