"""The configurations and links that the page on moving over shows are good ones."""

import re
from pathlib import Path

import pytest
import yaml

from fastkd.config.load import validate

PAGE = Path(__file__).parents[2] / "docs" / "moving-over.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
DATA = {"source": "de", "target": "en", "train": "t", "dev": "d", "prepared": "p"}


def test_there_is_one_for_each_paper():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS)
def test_configurations_are_valid(block):
    config = validate({"run": "r", "data": DATA, **yaml.safe_load(block)}, "page")
    assert len(config.losses) >= 2
