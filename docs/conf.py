"""The documentation site: `make docs`. Pages are Markdown; what can be generated is."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "docs")]

import generated  # noqa: E402
from docstrings import as_rst  # noqa: E402

import fastkd  # noqa: E402

project = "fastkd"
author = "The fastkd authors"
version = release = fastkd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
html_theme = "furo"
html_title = f"fastkd {version}"
html_show_copyright = False


def setup(app):
    app.connect(
        "builder-inited", lambda app: generated.write(ROOT, Path(app.srcdir) / "_generated")
    )
    app.connect("autodoc-process-docstring", as_rst)
