import pytest

from fastkd.config.load import validate
from fastkd.config.tree import ModelConfig

MODEL = {"encoder_layers": 2, "decoder_layers": 2, "width": 32, "ffn": 64, "heads": 2}


@pytest.fixture
def make_config(tmp_path):
    def make(**changes):
        training = {"batch_tokens": 256, "backend": "torch", "precision": "float32"}
        tree = {
            "run": str(tmp_path / "run"),
            "data": {
                "source": "de",
                "target": "en",
                "train": "train",
                "dev": "dev",
                "prepared": str(tmp_path / "prepared"),
                "max_length": 40,
            },
            "tokenizer": {"vocabulary": 300},
            "model": MODEL,
            "teacher": {"run": str(tmp_path / "teacher")},
            "training": training | changes.pop("training", {}),
            "losses": [{"name": "cross_entropy"}, {"name": "word_kd"}, {"name": "a2d"}],
        }
        return validate(tree | changes, "config")

    return make


@pytest.fixture
def teacher():
    return ModelConfig(**{**MODEL, "encoder_layers": 3, "decoder_layers": 3})
