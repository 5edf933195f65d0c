"""A run's folder is nobody else's, and goes on with what it began with, or says what differs."""

import json
import os
import shutil
from importlib import metadata

import pytest
import torch

from fastkd.__main__ import main
from fastkd.config.load import load_config
from fastkd.data.prepare import open_prepared
from fastkd.train.start import start
from fastkd.train.trainer import Trainer
from tests.cli.conftest import Workshop, checkpoint

TRAINING = {"updates": 2, "save_every": 1, "validate_every": 100, "bleu_sentences": 0}


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "# my notes\nmine: 1\n"},
        {"log.jsonl": '{"my": "log"}\nfree text\n'},
        {"tokenizer/source.model": "my model"},
        {"checkpoints/00000001/weights.pt": "mine"},
        {"average/notes.txt": "mine"},
    ],
)
def test_what_is_no_run_is_left_alone(taught, tmp_path, capsys, files):
    folder = tmp_path / "project"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = everything(folder)
    assert taught.run("train", taught.config("foreign", run=str(folder), training=TRAINING)) == 2
    assert "is no run's folder" in last_line(capsys)
    assert everything(folder) == before


def test_a_config_of_ones_own_in_the_run_folder_stays(taught, tmp_path, capsys):
    config = taught.config("own", run=str(tmp_path), training=TRAINING)
    own = tmp_path / "config.yaml"
    own.write_text(f"# three hours of notes\nextends: {config}\nrun: {tmp_path}\n")
    before = own.read_bytes()
    assert taught.run("train", str(own)) == 2
    assert "config.yaml in it would be replaced" in last_line(capsys)
    assert own.read_bytes() == before


@pytest.fixture
def run(taught, tmp_path):
    folder = tmp_path / "run"
    config = taught.config("going", run=str(folder), training=TRAINING)
    assert taught.run("train", config) == 0
    return folder, config


def test_checkpoints_of_other_names_stay(taught, run):
    folder, config = run
    for name in ("00000001-keep", "00000001.mine"):
        shutil.copytree(folder / "checkpoints" / "00000001", folder / "checkpoints" / name)
    (folder / "checkpoints" / "00000001" / "notes.txt").write_text("precious")
    more = ["training.updates=8", "training.keep_last=1"]
    assert taught.run("train", config, *more) == 0
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"00000001-keep", "00000001.mine", "00000001", "00000008"} <= left
    assert not {"00000003", "00000004"} & left


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ("training.seed=7", 0, "training.seed 1 → 7"),
        ("training.batch_tokens=256", 0, "training.batch_tokens 128 → 256"),
        ("training.optimizer.lr=0.02", 0, "training.optimizer.lr 0.01 → 0.02"),
        ("training.ema=0.9", 2, "training.ema: the run has 0"),
        ("model.dropout=0.5", 2, "other settings under 'model' (model.dropout 0.1 → 0.5)"),
        ("losses.cross_entropy.weight=2", 2, "losses.cross_entropy.weight 1.0 → 2.0"),
    ],
)
def test_other_settings_are_told_or_refused(taught, run, capsys, caplog, change, status, said):
    _, config = run
    assert taught.run("train", config, "training.updates=3", change) == status
    assert said in caplog.text + capsys.readouterr().err


def test_an_average_is_not_dropped_half_way(taught, run, capsys, tmp_path):
    config = taught.config("averaged", run=str(tmp_path / "averaged"), training=TRAINING)
    assert taught.run("train", config, "training.ema=0.9") == 0
    assert taught.run("train", config, "training.updates=3") == 2
    assert "training.ema: the run has 0.9" in last_line(capsys)


def test_other_versions_are_told(taught, run, caplog):
    folder, config = run
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "1.0", "commit": "abc"}))
    assert taught.run("train", config, "training.updates=3") == 0
    assert f"torch 1.0 → {metadata.version('torch')}" in caplog.text
    assert "commit abc → " in caplog.text
    assert json.loads(path.read_text())["torch"] == metadata.version("torch")


@pytest.mark.parametrize("kind", ["run", "cache"])
def test_another_teacher_under_the_same_path_is_refused(taught, tmp_path, capsys, kind):
    teacher, cache = str(tmp_path / "teacher"), str(tmp_path / "cache")
    taught_by = {"run": teacher} if kind == "run" else {"cache": cache}
    first = taught.config("first", run=teacher, training=TRAINING)
    losses = [{"name": "cross_entropy"}, {"name": "word_kd"}]
    config = taught.config(
        "student", run=str(tmp_path / "run"), training=TRAINING, teacher=taught_by, losses=losses
    )
    caching = ["cache-teacher", teacher, "train", "--top-k", "4", "-o", cache]
    for updates in (2, 3):
        assert taught.run("train", first, f"training.updates={updates}") == 0
        assert taught.run(*caching) == 0
        status = taught.run("train", config, f"training.updates={2 * updates}")
        assert status == (0 if updates == 2 else 2)
    assert "another teacher" in last_line(capsys)


def test_a_project_that_is_moved_goes_on(tmp_path, caplog):
    """Its texts, teacher and runs under other paths, known by their hashes; to the same bits."""
    folders = [tmp_path / name for name in ("stays", "here")]
    for folder in folders:
        folder.mkdir()
        shop = Workshop(folder)
        first = shop.config("teacher", training={"updates": 1})
        losses = [{"name": "cross_entropy"}, {"name": "word_kd"}]
        shop.config("run", training=TRAINING, teacher={"run": f"{folder}/teacher"}, losses=losses)
        assert shop.run("prepare", first) == shop.run("train", first) == 0
        assert shop.run("train", str(folder / "run.yaml")) == 0
    folders[1] = shutil.move(folders[1], tmp_path / "there")
    config = folders[1] / "run.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "here"), str(folders[1])))
    assert main(["prepare", str(config)]) == 0
    caplog.clear()
    for folder in folders:
        assert main(["train", str(folder / "run.yaml"), "training.updates=4"]) == 0
    assert f"data.train {tmp_path / 'here' / 'train'} → {folders[1] / 'train'}" in caplog.text
    assert f"teacher.run {tmp_path / 'here' / 'teacher'} → " in caplog.text
    ours, theirs = (checkpoint(folder / "run", 4) for folder in folders)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_that_is_a_link_is_somebodys(taught, run, tmp_path):
    folder, config = run
    linked = folder / "checkpoints" / "00000001"
    linked.rename(tmp_path / "mine")
    linked.symlink_to(tmp_path / "mine")
    before = everything(tmp_path / "mine")
    assert taught.run("train", config, "training.updates=6", "training.keep_last=1") == 0
    assert linked.is_symlink() and everything(tmp_path / "mine") == before
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_run_that_is_deleted_while_it_is_trained_ends(taught, tmp_path, capsys, monkeypatch):
    folder, update = tmp_path / "run", Trainer._update

    def deleting(self, ids, epoch):
        update(self, ids, epoch)
        if self.position.update == 1:
            shutil.rmtree(folder)

    monkeypatch.setattr(Trainer, "_update", deleting)
    assert taught.run("train", taught.config("deleted", run=str(folder), training=TRAINING)) == 1
    assert f"{folder}: was deleted, moved or replaced" in last_line(capsys)
    assert not folder.exists()


def test_more_updates_are_nothing_to_tell(taught, run, caplog):
    assert taught.run("train", run[1], "training.updates=3") == 0
    assert not caplog.records


def test_another_corpus_under_the_same_path_is_refused(shop, capsys):
    config = shop.config("run", training=TRAINING)
    assert shop.run("prepare", config) == shop.run("train", config) == 0
    tokenizer = f"tokenizer={shop.folder / 'run'}"
    for side in ("de", "dsb"):
        path = shop.folder / f"train.{side}"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    assert shop.run("prepare", config, tokenizer) == 0
    assert shop.run("train", config, tokenizer, "training.updates=4") == 2
    assert "another train corpus" in last_line(capsys)


@pytest.mark.parametrize("what", ["heads", "tokenizer", "run.json"])
def test_what_was_changed_beside_the_checkpoints_is_noticed(taught, run, capsys, tmp_path, what):
    folder, _ = run
    if what == "heads":
        path = folder / "config.yaml"
        path.write_text(path.read_text().replace("heads: 2", "heads: 4"))
    elif what == "tokenizer":
        path = folder / "tokenizer" / "joint.model"
        content = path.read_bytes()
        path.write_bytes(content.replace(b"hund", b"hunt"))
        assert path.read_bytes() != content
    else:
        (folder / "run.json").write_text("{")
    (tmp_path / "in").write_text("ein hund\n")
    assert taught.run("translate", str(folder), "-i", str(tmp_path / "in")) == 2
    assert "damaged" in last_line(capsys)


def test_a_run_without_a_manifest_goes_on_and_says_so(taught, run, caplog):
    folder, config = run
    (folder / "run.json").unlink()
    assert taught.run("train", config, "training.updates=3") == 0
    assert "has no run.json" in caplog.text
    told = json.loads((folder / "run.json").read_text())
    assert told["format"] == 1 and told["corpora_sha256"].keys() == {"train", "dev"}


def test_a_fifo_in_place_of_the_log_does_not_hang(taught, run, capsys):
    folder, config = run
    (folder / "log.jsonl").unlink()
    os.mkfifo(folder / "log.jsonl")
    assert taught.run("train", config, "training.updates=3") == 2
    assert "log.jsonl: expected a file" in last_line(capsys)


def test_a_file_among_the_checkpoints_is_somebodys(taught, run):
    folder, config = run
    file = folder / "checkpoints" / "00000000"
    file.write_text("mine")
    assert taught.run("train", config, "training.updates=6", "training.keep_last=1") == 0
    assert file.read_text() == "mine"


def test_a_run_that_was_finished_is_left_to_others(taught, run):
    """In one process; `train` of it has nothing to do, and held the folder ever after."""
    _, config = run
    finished = load_config(config, ())
    longer = load_config(config, ("training.updates=3",))
    prepared = open_prepared(finished)
    trainer = start(finished, prepared)
    assert trainer.finished and trainer.train().update == 2
    assert start(longer, prepared).train().update == 3
