"""The alignment kernels compiled for chips that are not there, without the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

KERNELS = Path(__file__).parents[3] / "kernels"


@pytest.mark.slow
def test_representative_cases_do_not_spill_and_fit_the_chip():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS)
    command = [sys.executable, "-m", "fastkd_kernels.offline", "--modules", "attention"]
    done = subprocess.run(
        [*command, "--representative", "--targets", "sm_90"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"Triton {triton.__version__}: " in done.stdout
    assert " 0 over the limits" in done.stdout
