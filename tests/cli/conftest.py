"""A tiny corpus and configs over it; commands run in this process through `main`."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastkd.__main__ import main
from fastkd.runs.checkpoint import write_checkpoint
from fastkd.runs.folder import RunFolder

WORDS = {"ein": "jeden", "hund": "pjas", "katze": "kocka", "sieht": "wizi", "den": "togo"}
MODEL = {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "ffn": 32, "heads": 2}
CMLM = {"kind": "cmlm", "cmlm": {"causal_attention": True, "length_classes": 16}}
TRAINING = {
    "updates": 4,
    "batch_tokens": 128,
    "validate_every": 2,
    "log_every": 1,
    "bleu_sentences": 4,
    "device": "cpu",
    "precision": "float32",
    # A large eps keeps Adam from blowing up the rounding of tiny gradients.
    "optimizer": {"lr": 0.01, "warmup": 2, "eps": 1e-3},
}


def write_corpus(folder: Path, sizes: dict[str, int]) -> None:
    random.seed(0)
    for split, count in sizes.items():
        rows = [random.choices(list(WORDS), k=random.randint(1, 7)) for _ in range(count)]
        translated = [[WORDS[word] for word in row] for row in rows]
        for language, lines in (("de", rows), ("dsb", translated)):
            text = "".join(" ".join(line) + "\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")


class Workshop:
    """A folder with a corpus, and ways to make configs and run verbs there."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_corpus(folder, {"train": 60, "dev": 6, "test": 5})

    def config(self, name: str, **changes) -> str:
        prefixes = {split: str(self.folder / split) for split in ("train", "dev", "test")}
        data = {"source": "de", "target": "dsb", "prepared": str(self.folder / "prepared")}
        tree = {
            "run": str(self.folder / name),
            "data": {**data, **prefixes},
            "tokenizer": {"vocabulary": 32},
            "model": MODEL,
            "training": TRAINING,
            "decoding": {"beam": 2},
        }
        for key, value in changes.items():
            both = isinstance(value, dict) and isinstance(tree.get(key), dict)
            tree[key] = {**tree[key], **value} if both else value
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return str(path)

    def run(self, *arguments: str) -> int:
        return main(list(arguments))


def checkpoint(folder: Path, update: int) -> dict[str, torch.Tensor]:
    """Every tensor of a run's checkpoint: weights, averages, the optimizer's and methods' state."""
    files = sorted((folder / "checkpoints" / f"{update:08d}").glob("*.safetensors"))
    assert files
    return {f"{file.stem} {name}": t for file in files for name, t in load_file(file).items()}


def train_on(folder: Path) -> None:
    """Gives a run a checkpoint of other weights, which is its best one by now."""
    run = RunFolder.open(folder)
    weights = run.read_weights()
    meta = {key: value for key, value in weights.meta.items() if key != "sha256"}
    tensors = {name: -tensor for name, tensor in weights.tensors.items()}
    meta |= {"update": 9, "best_update": 9}
    write_checkpoint(run.checkpoint(9), {"model": tensors}, meta)


def position(folder: Path, update: int) -> dict:
    """Where a checkpoint stands: place in the data, best result, patience; without its times."""
    path = folder / "checkpoints" / f"{update:08d}" / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in meta.items() if key not in ("seconds", "meter", "sha256")}


@pytest.fixture(scope="session")
def taught(tmp_path_factory) -> Workshop:
    """A workshop with a prepared corpus and a trained run `teacher`; tests must not change it."""
    shop = Workshop(tmp_path_factory.mktemp("taught"))
    config = shop.config("teacher")
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 0
    return shop


@pytest.fixture(scope="session")
def masked(taught) -> Workshop:
    """The same one, with a masked model trained beside the autoregressive one."""
    config = taught.config(
        "masked",
        model={**MODEL, **CMLM},
        losses=[{"name": "masked_cross_entropy", "self_correction": 0.3}, {"name": "length"}],
        decoding={"passes": 3},
    )
    assert taught.run("train", config) == 0
    return taught


@pytest.fixture
def shop(tmp_path) -> Workshop:
    return Workshop(tmp_path)
