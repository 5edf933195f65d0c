"""The documentation site: its snippets work, and it is built without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastkd.config.load import validate

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]
LOSSES = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(
        re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
]
DATA = {"source": "de", "target": "en", "train": "t", "dev": "d", "prepared": "p"}


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet):
    scope: dict = {}
    exec(snippet, scope)
    learned = [
        value
        for value in scope.values()
        if getattr(value, "requires_grad", False) and getattr(value, "is_leaf", False)
    ]
    assert all(tensor.grad.isfinite().all() for tensor in learned)


@pytest.mark.parametrize("text", LOSSES)
def test_configuration_is_valid(text):
    tree = {key: value for key, value in yaml.safe_load(text).items() if key != "extends"}
    assert validate({"run": "r", "data": DATA, **tree}, "page").losses


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    run = subprocess.run(
        [*command, "-d", str(tmp_path / "state"), str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "divided by" in (tmp_path / "site" / "losses.html").read_text(encoding="utf-8")


def test_the_index_has_every_page_in_a_named_group():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    groups = re.findall(r"```{toctree}\n(.*?)\n```", index, re.DOTALL)
    assert len(groups) > 1
    linked = []
    for options, pages in (group.split("\n\n") for group in groups):
        assert ":caption: " in options
        linked += pages.split()
    assert sorted(linked) == sorted(page.stem for page in PAGES if page.stem != "index")
