"""What is in the archives that are published."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import fastkd
from tests.packaging.conftest import FILES, FOLDERS, sources


def test_the_wheel_holds_the_two_packages_and_nothing_else(archives):
    with zipfile.ZipFile(archives.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    packages = sources(Path("fastkd")) | {
        name.removeprefix("kernels/") for name in sources(Path("kernels/fastkd_kernels"))
    }
    assert names == packages
    assert {"fastkd/py.typed", "fastkd/recipes/wmt22-de-dsb/teacher.yaml"} <= names
    assert any(name.endswith(".cpp") for name in names)


def test_what_the_wheel_says_of_itself(archives):
    info = f"fastkd-{fastkd.__version__}.dist-info"
    with zipfile.ZipFile(archives.wheel) as wheel:
        about = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        assert "fastkd = fastkd.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert about["Version"] == fastkd.__version__
    needed = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line.partition(">=")[0] for line in needed] == ["numpy", "torch", "triton"]
    assert about.get_all("Classifier")


def test_the_sdist_holds_what_the_tests_need(archives):
    with tarfile.open(archives.sdist) as archive:
        held = {file.name.partition("/")[2] for file in archive if file.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    ours = {name for name in held if not name.startswith("fastkd.egg-info/")} - made
    assert ours == {*FILES, *(file for part in FOLDERS for file in sources(Path(part)))}


@pytest.mark.slow
def test_tests_run_from_the_sdist(archives):
    """Those that read recipes, pages and results."""
    tests = (
        "config",
        "data",
        "docs/test_moving_over.py",
        "train",
        "benchmarks/test_translation.py",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=archives.unpacked,
        env={**os.environ, "PYTHONPATH": f"{archives.unpacked}:{archives.unpacked / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
