"""The wheel in an environment that has the base install alone: PyTorch, Triton and NumPy."""

import importlib.metadata
import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastkd

BASE = ("torch", "triton", "numpy")
SHOWN = (
    *("--op", "linear-ce", "--shapes", "smoke", "--device", "cpu", "--seconds", "0"),
    *("--against", "reference,torch", "--no-memory"),
)
USED = """
import importlib.util, sys
import torch, fastkd

hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
target = torch.randint(9, (6,))
for backend in ("reference", "torch"):
    fastkd.linear_token_distillation_loss(
        hidden, weight, hidden.detach(), weight.detach(), target,
        ce_weight=1.0, kd_weight=1.0, rank_weight=1.0, backend=backend,
    ).loss.backward()
queries = torch.randn(1, 2, 5, 4, requires_grad=True)
align = fastkd.AttentionAlignment(2, 2)
align(queries, queries, queries.detach(), queries.detach()).backward()
assert fastkd.memory.profile and fastkd.integrations and fastkd.__version__
for absent in ("yaml", "click", "pydantic", "rich", "transformers", "sentencepiece", "psutil"):
    assert importlib.util.find_spec(absent) is None, absent
"""


def with_requirements(names: tuple[str, ...]) -> set[str]:
    """Distributions, and what they need; extras left out."""
    known, left = set(), list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in known:
            continue
        try:
            requirements = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue  # which another platform or Python needs
        known.add(name)
        left += [re.split(r"[^\w.-]", each)[0] for each in requirements if "extra ==" not in each]
    return known


@dataclass(frozen=True)
class Environment:
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / program), *arguments]
        alone = {"OMP_NUM_THREADS": "1"}  # nothing of this process' environment
        return subprocess.run(command, cwd=self.folder, env=alone, capture_output=True, text=True)


@pytest.fixture(scope="module")
def base(archives, tmp_path_factory) -> Environment:
    folder = tmp_path_factory.mktemp("base")
    packages = folder / "packages"
    packages.mkdir()
    for name in with_requirements(BASE):
        distribution = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            place = Path(str(distribution.locate_file(part)))
            if place.exists() and not (packages / part).exists() and part != "__pycache__":
                (packages / part).symlink_to(place)
    venv.create(folder / "venv", with_pip=False)
    environment = Environment(folder / "venv")
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "base.pth").write_text(f"{packages}\n")
    # Without network: pip finds what the wheel needs, or says what is missing.
    pip = (sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python"))
    install = (*pip, "install", "--no-index", str(archives.wheel))
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return environment


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton is part of the base install on Linux")
def test_the_losses_need_nothing_else(base):
    done = base.run("python", "-c", USED)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_version_and_bench_need_nothing_else(base):
    done = base.run("fastkd", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fastkd, version {fastkd.__version__}\n"
    done = base.run("fastkd", "bench", *SHOWN, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "linear-ce N=16" in done.stdout and "torch" in done.stdout
    assert done.stderr == "fastkd: no plots: needs the package matplotlib\n"
    assert (base.folder / "out" / "cpu.csv").exists()


@pytest.mark.slow
def test_what_needs_more_says_so_in_one_line(base):
    for arguments in (("train", "none.yaml"), ("bench", "--op", "training", "--shapes", "smoke")):
        done = base.run("fastkd", *arguments)
        assert done.returncode == 1
        assert re.fullmatch(
            r"fastkd: needs the package \w+; expected: pip install 'fastkd\[train\]'\n", done.stderr
        ), done.stderr
