"""What `import fastkd` offers, and what it does not load for it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastkd
from fastkd.__main__ import main

ROOT = Path(__file__).parents[1]


def loaded(code: str) -> set[str]:
    """Modules in a process of its own, after some code."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name", ["errors", "functional", "integrations", "losses", "memory", "modules", "taps"]
)
def test_packages_are_reachable_and_listed(name):
    loaded(f"import fastkd; assert fastkd.{name}.__name__ == 'fastkd.{name}'")
    assert name in dir(fastkd)


def test_import_loads_nothing_that_is_not_asked_for():
    assert not loaded("import fastkd") & {"torch", "triton", "numpy", "pydantic", "click"}
    assert not loaded("import fastkd.integrations") & {
        "fastkd.data", "fastkd.nn", "fastkd.methods", "sentencepiece"
    }  # fmt: skip


def test_a_verb_loads_nothing_before_it_runs():
    assert not loaded("import fastkd.cli.recipes, fastkd.cli.heads") & {
        "fastkd.config.load", "pydantic", "torch", "yaml"
    }  # fmt: skip


def test_every_name_exists():
    assert [name for name in fastkd.__all__ if not hasattr(fastkd, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastkd.nothing


def test_the_version_is_said_and_in_the_changelog(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastkd, version {fastkd.__version__}\n"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([\d.]+)", changes, re.M)[0] == fastkd.__version__


@pytest.mark.parametrize("page", ["CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_and_files_of_the_pages_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    files = re.findall(r"`((?:fastkd|tests|benchmarks|kernels)/[\w/]+\.(?:py|md))`", text)
    assert all((ROOT / name).exists() for name in links + files), (links, files)
