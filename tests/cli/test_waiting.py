"""How threads wait is set before PyTorch is imported, and never against the user."""

import os
import subprocess
import sys

import pytest

from fastkd.waiting import SPINS

CODE = """
import os, sys
from fastkd.__main__ import main
assert "torch" not in sys.modules
main(["--help"])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, str(SPINS)),
        ({"OMP_NUM_THREADS": "2"}, str(SPINS)),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_the_users_word_counts(given, expected):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == expected
