"""A minute of faults, or five of them: `python -m tests.faults.suite` runs an hour."""

import os
import random
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "minutes", [pytest.param(0.7, id="a minute"), pytest.param(5, marks=pytest.mark.slow)]
)
def test_nothing_is_lost_whatever_happens(minutes):
    """In a process of its own, which forks: a thread of another test would be lost in it."""
    drawn = 1 if "CI" in os.environ else random.randrange(10**6)
    seed = os.environ.get("FASTKD_FAULTS_SEED", str(drawn))
    command = [sys.executable, "-m", "tests.faults.suite", "--minutes", str(minutes)]
    done = subprocess.run([*command, "--seed", seed], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"FASTKD_FAULTS_SEED={seed}\n{done.stdout}"
