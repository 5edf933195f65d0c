"""Numbers that no model has are refused by whoever reads them, by the file's name."""

import json
import shutil

import numpy as np
import pytest
import torch

from fastkd.runs.checkpoint import read_group, write_checkpoint

STUDENT = {"encoder_layers": 1, "decoder_layers": 1, "width": 8, "dropout": 0.0}


@pytest.fixture
def spoilt(taught, tmp_path, request):
    """A copy of the taught run whose newest and best weights were changed, checksums included."""
    run = tmp_path / "spoilt"
    shutil.copytree(taught.folder / "teacher", run)
    for folder in (run / "checkpoints").iterdir():
        groups = {file.stem: read_group(folder, file.stem) for file in folder.glob("*.safetensors")}
        meta = json.loads((folder / "meta.json").read_text())
        meta.pop("sha256")
        groups["model"] = {n: request.param(t) for n, t in groups["model"].items()}
        write_checkpoint(folder, groups, meta)
    return run


def to_nan(tensor):
    return tensor * torch.nan


def to_infinity(tensor):
    return tensor + torch.inf


def to_half(tensor):
    return tensor.half()


def to_double(tensor):
    return tensor.double()


def to_whole(tensor):
    return tensor.long()


@pytest.mark.parametrize(
    "spoilt", [to_nan, to_infinity, to_half, to_double, to_whole], indirect=True
)
def test_weights(taught, tmp_path, spoilt, capsys):
    (tmp_path / "in").write_text("ein hund\n")
    student = taught.config(
        "s",
        run=str(tmp_path / "s"),
        model=STUDENT,
        teacher={"run": str(spoilt)},
        losses=[{"name": "word_kd"}],
    )
    for command in (
        ["translate", str(spoilt), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")],
        ["score", str(spoilt), "test"],
        ["cache-teacher", str(spoilt), "train", "--top-k", "4", "-o", str(tmp_path / "cache")],
        ["train", student],
    ):
        assert taught.run(*command) == 2, command
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert "model.safetensors" in line or str(spoilt / "checkpoints") in line
        assert "not finite" in line or "expected torch.float32" in line
    assert not {"out", "cache", "s"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("spoilt", [to_nan], indirect=True)
@pytest.mark.parametrize("verb", ["average", "export"])
def test_weights_that_are_handed_on(taught, tmp_path, spoilt, capsys, verb):
    more = ["--to", "transformers", str(tmp_path / "out")] if verb == "export" else []
    assert taught.run(verb, str(spoilt), *more) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (spoilt / "average").exists()


@pytest.fixture
def cache(taught, tmp_path):
    folder = tmp_path / "cache"
    run = str(taught.folder / "teacher")
    assert taught.run("cache-teacher", run, "train", "--top-k", "6", "-o", str(folder)) == 0
    return folder


def learns(taught, tmp_path, cache):
    config = taught.config(
        "s",
        run=str(tmp_path / "s"),
        model=STUDENT,
        training={"updates": 1},
        teacher={"cache": str(cache)},
        losses=[{"name": "word_kd"}],
    )
    return taught.run("train", config)


@pytest.mark.parametrize("name", ["ids", "log_probs", "meta.json"])
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "half zeroed"])
def test_a_cache_that_was_changed(taught, tmp_path, cache, capsys, name, damage):
    content = bytearray((cache / name).read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        start = 0 if damage == "zeroed" else len(content) // 2
        content[start:] = bytes(len(content) - start)
    (cache / name).write_bytes(content)
    assert learns(taught, tmp_path, cache) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(cache / name) in line and "damaged" in line


def test_a_cache_of_an_earlier_version_is_looked_through(taught, tmp_path, cache, capsys, caplog):
    meta = json.loads((cache / "meta.json").read_text())
    meta = {**meta, "format": 1}
    del meta["sha256"], meta["vocabulary"]
    (cache / "meta.json").write_text(json.dumps(meta))
    assert learns(taught, tmp_path, cache) == 0
    assert "without hashes" in caplog.text
    ids, log_probs = (np.fromfile(cache / n, t) for n, t in (("ids", "u2"), ("log_probs", "f4")))
    for name, array, value in (("log_probs", log_probs, np.nan), ("log_probs", log_probs, 5.0),
                               ("ids", ids, 300)):  # fmt: skip
        changed = array.copy()
        changed[10] = value
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        changed.tofile(cache / name)
        assert learns(taught, tmp_path, cache) == 2
        assert str(cache / name) in capsys.readouterr().err.strip().splitlines()[-1]
        array.tofile(cache / name)


def test_a_teacher_whose_weights_are_too_large_is_not_cached(taught, tmp_path, capsys):
    run = tmp_path / "huge"
    shutil.copytree(taught.folder / "teacher", run)
    for folder in (run / "checkpoints").iterdir():
        model = {n: t.sign() * 3e38 for n, t in read_group(folder, "model").items()}
        write_checkpoint(folder, {"model": model}, {"update": 4})
    command = ["cache-teacher", str(run), "train", "--top-k", "4", "-o", str(tmp_path / "cache")]
    assert taught.run(*command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(run) in line and "log-probabilities" in line
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_fewer_positions(taught, tmp_path, capsys):
    small = taught.config("small", run=str(tmp_path / "small"), model={"max_positions": 30})
    assert taught.run("train", small, "training.updates=1") == 0
    (tmp_path / "small" / "run.json").unlink()  # which would notice
    config = tmp_path / "small" / "config.yaml"
    config.write_text(config.read_text().replace("max_positions: 30", "max_positions: 5"))
    student = taught.config(
        "s",
        run=str(tmp_path / "s"),
        teacher={"run": str(tmp_path / "small")},
        losses=[{"name": "word_kd"}],
    )
    assert taught.run("train", student) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"teacher.run: {tmp_path / 'small'} has model.max_positions = 5; expected at least" in line
    )
