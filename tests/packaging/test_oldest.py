"""The oldest Triton, Transformers and filelock that `pyproject.toml` allows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_NETWORK = r"\(from versions: none\)|connection broken|Failed to establish a new connection"
# The versions are those of the process that ran the tests.
TESTED = """
import sys
import pytest

names, arguments = sys.argv[1].split(","), sys.argv[2:]
status = pytest.main(["-rs", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments])
for name in names:
    print(f"{name}=={sys.modules[name].__version__}")
sys.exit(status)
"""


def oldest(name: str) -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (found,) = re.findall(rf'"{name}>=([\d.]+)', text)
    return f"{name}=={found}.0"


def install(folder: Path, *arguments: str) -> None:
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--retries", "1")
    command += ("--target", str(folder), *arguments)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and re.search(NO_NETWORK, done.stderr):
        pytest.skip(f"no network from which to install {' '.join(arguments)}")
    assert done.returncode == 0, done.stderr


def run(packages: Path, *arguments: str) -> str:
    """What Python prints where these packages stand before the environment's."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (packages, ROOT, ROOT / "kernels")))
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    return done.stdout


def assert_tests_pass(packages: Path, versions: tuple[str, ...], *arguments: str) -> None:
    names = ",".join(version.partition("==")[0] for version in versions)
    printed = run(packages, "-c", TESTED, names, "-m", "not slow", *arguments)
    assert re.search(r"\d+ passed", printed)
    assert "could not import" not in printed
    assert {*versions} <= {*printed.splitlines()}


@pytest.mark.slow
def test_the_oldest_triton(tmp_path):
    version = oldest("triton")
    # Its interpreter makes numbers of arrays with a dimension, which NumPy 2.4 refuses.
    install(tmp_path, version, "numpy<2.4")
    offline = ("-m", "fastkd_kernels.offline", "--representative", "--targets", "sm_90")
    compiled = run(tmp_path, *offline)
    assert f"Triton {version.partition('==')[2]}: " in compiled
    assert " 0 over the limits" in compiled
    assert_tests_pass(
        *(tmp_path, (version,), "tests/kernels/tokens/test_operators.py"),
        "tests/kernels/attention/test_operators.py",
        "tests/kernels/attention/test_losses.py::test_every_normalization_padding_and_reduction",
        "tests/kernels/attention/test_losses.py::test_maps",
    )


@pytest.mark.slow
def test_the_oldest_transformers(tmp_path):
    versions = (oldest("transformers"), oldest("accelerate"))
    install(tmp_path, versions[0])
    install(tmp_path, "--no-deps", versions[1])  # not another PyTorch
    assert_tests_pass(
        *(tmp_path, versions, "tests/integrations/test_transformers.py"),
        "tests/integrations/test_trainers.py",
        "tests/integrations/test_updates.py",
        "tests/terms/test_both_trainers.py",
        "tests/export/test_transformers.py",
    )


@pytest.mark.slow
def test_the_oldest_filelock(tmp_path):
    """Earlier ones delete the lock's file, or take a file system without locks for an error."""
    version = oldest("filelock")
    install(tmp_path, "--no-deps", version)
    assert_tests_pass(
        *(tmp_path, (version,), "tests/runs/test_lock.py"),
        "tests/cli/test_odd_file_systems.py::test_work_goes_on_without_locks",
        "tests/cli/test_odd_file_systems.py::test_a_killed_run_leaves_no_lock_where_there_are_none",
    )
