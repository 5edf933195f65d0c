"""Every link of a page leads to a file, and to a heading of it; addresses are well formed."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "benchmarks" / name for name in ("README.md", "translation/DATA.md")),
    ROOT / "kernels" / "README.md",
]
NEEDED = (
    "start", "own-loop", "trainers", "training", "losses", "memory", "figures", "configuration",
    "api", "data", "environment", "moving-over", "changelog",
)  # fmt: skip


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^()\s]+)\)", text)


def anchors(page):
    """Headings as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(("http:", "https:")):
            assert urlsplit(link).hostname and "." in urlsplit(link).hostname, link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_needed_pages_are_there():
    assert set(NEEDED) <= {page.stem for page in PAGES}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
