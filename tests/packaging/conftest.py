"""The archives that are published, built once, without network and beside the checkout."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "docs", "examples", "fastkd", "kernels", "tests")
FILES = (
    *(".ci/run", ".pre-commit-config.yaml", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "pyproject.toml", "setup.py"),
)
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"


@dataclass(frozen=True)
class Archives:
    sdist: Path
    unpacked: Path  # the sdist
    wheel: Path  # built from it


def sources(folder: Path) -> set[str]:
    """Files below a folder of the checkout, without what Python leaves beside them."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    left = ("__pycache__", ".egg-info", ".benchmarks", ".hypothesis")
    return {
        str(path.relative_to(ROOT))
        for path in found
        if not any(part.endswith(left) for part in path.relative_to(ROOT).parts)
    }


def build(kind: str, tree: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _BUILD.format(kind), str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def archives(tmp_path_factory) -> Archives:
    folder = tmp_path_factory.mktemp("archives")
    tree = folder / "tree"
    for name in sorted({*FILES, *(file for part in FOLDERS for file in sources(Path(part)))}):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    sdist = build("sdist", tree, folder / "built")
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Archives(sdist, unpacked, build("wheel", unpacked, folder / "built"))
