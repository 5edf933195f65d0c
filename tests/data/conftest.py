import random

import pytest

from fastkd.config.load import validate
from fastkd.config.tree import TokenizerConfig
from fastkd.data.tokenizer import Tokenizers, train_tokenizer


def _sentences(count, seed):
    """Made-up sentences of 1 to 12 words with enough variety for a small vocabulary."""
    draw = random.Random(seed)
    syllables = ["ba", "de", "fi", "go", "lu", "ma", "ne", "ri", "so", "tu"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(200)]
    return [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="session")
def sentences():
    """`sentences(count, seed)`: as many made-up ones."""
    return _sentences


@pytest.fixture(scope="session")
def joint():
    """A joint tokenizer of 60 pieces."""
    config = TokenizerConfig(vocabulary=60)
    tokenizer = train_tokenizer(config, _sentences(400, 1) + _sentences(400, 2), "text")
    return Tokenizers(tokenizer, tokenizer)


@pytest.fixture
def write_text(tmp_path):
    """Writes lines to a file in the test's folder; returns its path."""

    def write(name, lines):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def config_of(tmp_path, write_text):
    """A small corpus in the test's folder, and a config of it with some keys changed."""
    for split, count in (("train", 300), ("dev", 20), ("test", 10)):
        write_text(f"{split}.aa", _sentences(count, 1))
        write_text(f"{split}.bb", _sentences(count, 2))

    def config(tokenizer=None, **data):
        files = {split: str(tmp_path / split) for split in ("train", "dev", "test")}
        languages = {"source": "aa", "target": "bb"}
        prepared = {"prepared": str(tmp_path / "prepared")}
        tree = {
            "run": str(tmp_path / "run"),
            "data": files | languages | prepared | data,
            "tokenizer": tokenizer or {"vocabulary": 60},
        }
        return validate(tree, "config")

    return config
