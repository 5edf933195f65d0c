"""Where the lengths of a predicted step come from."""

import shutil
from pathlib import Path

import pytest

from fastkd.__main__ import main
from fastkd.config.load import load_config
from fastkd.errors import InputError
from fastkd.memory.step.workload import workload
from tests.cli.conftest import Workshop


@pytest.fixture
def shop(tmp_path):
    made = Workshop(tmp_path)
    assert made.run("prepare", made.config("run")) == 0
    return made


def source(shop, **data) -> str:
    return workload(load_config(shop.config("run", data=data))).source


def test_lengths_of_the_corpus_or_assumed_ones(shop):
    (shop.folder / "train.de").write_text("another text now\n")
    assert source(shop).startswith("epoch 1 of")
    assert source(shop, max_length=30).startswith("lengths assumed")
    shutil.rmtree(shop.folder / "prepared")
    assert source(shop).startswith("lengths assumed")


@pytest.mark.parametrize(
    "file", ["prepared.json", "train/source.tokens", "test/meta.json", "tokenizer/joint.model"]
)
def test_a_damaged_corpus_is_told(shop, file):
    path = shop.folder / "prepared" / file
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match=f"{Path(file).parent}.*(damaged|not a sentencepiece)"):
        source(shop)


def test_a_page_of_runs_whose_corpus_is_damaged(shop, capsys):
    assert shop.run("train", shop.config("run")) == 0
    (shop.folder / "prepared/dev/source.tokens").write_bytes(b"")
    page = shop.folder / "page.html"
    command = ["compare", str(shop.folder / "run"), "--samples", "0", "-o", str(page)]
    assert main(command) == 2
    assert "prepared/dev: the prepared corpus is damaged" in capsys.readouterr().err
    assert not page.exists()
    assert main([*command, "--no-memory"]) == 0
