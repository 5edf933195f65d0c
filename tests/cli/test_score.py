"""`fastkd score`: what it prints and what it keeps."""

import json
import os
import shutil
import threading
import time

import pytest
import yaml

from fastkd.runs import scores, translation
from fastkd.runs.folder import RunFolder
from fastkd.runs.scores import Entry, record_scores
from tests.cli.conftest import train_on


@pytest.fixture
def run(taught, tmp_path):
    """The taught run, which may be changed."""
    return shutil.copytree(taught.folder / "teacher", tmp_path / "run")


def entries(run):
    return json.loads((run / "scores.json").read_text())["scores"]


def test_scores_are_kept(taught, run, capsys, tmp_path):
    assert taught.run("score", str(run), "test", "-o", str(tmp_path / "out.gz")) == 0
    printed = capsys.readouterr().out
    (entry,) = entries(run)
    assert f"BLEU {entry['bleu']:.2f}  {entry['bleu_signature']}" in printed
    assert f"chrF {entry['chrf']:.2f}" in printed and "tok:13a" in entry["bleu_signature"]
    assert (entry["split"], entry["checkpoint"], entry["sentences"]) == ("test", "best", 5)
    assert entry["decoding"]["beam"] == 2 and entry["engine"] == "pytorch"
    assert taught.run("score", str(run), "test") == 0
    assert entries(run) == [entry]  # the same again takes its place
    assert taught.run("score", str(run), "test", "--beam", "1") == 0
    assert taught.run("score", str(run), "dev", "--tokenize", "char") == 0
    assert [e["split"] for e in entries(run)] == ["test", "test", "dev"]
    assert "tok:char" in entries(run)[-1]["bleu_signature"]


def test_scores_tell_of_what_text_they_are(shop, run):
    """So that those of a text that changed meanwhile do not stand beside others."""
    path = run / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["data"] |= {"test": str(shop.folder / "test"), "train": str(shop.folder / "train")}
    path.write_text(yaml.safe_dump(tree))
    hashes = set()
    for change in ("", "den "):
        text = shop.folder / "test.dsb"
        text.write_text(change + text.read_text())
        assert shop.run("score", str(run), "test") == 0
        hashes.add(entries(run)[0]["text_sha256"])
    assert len(hashes) == 2


def test_scores_are_of_the_checkpoint_that_translated(taught, run, monkeypatch):
    """Also where there is a better one when all is translated."""
    before, translate = RunFolder.open(run).read_meta()["update"], translation.translate_split

    def trained_meanwhile(*arguments, **search):
        found = translate(*arguments, **search)
        train_on(run)
        return found

    monkeypatch.setattr(translation, "translate_split", trained_meanwhile)
    assert taught.run("score", str(run), "test") == 0
    assert entries(run)[0]["update"] == before != RunFolder.open(run).read_meta()["update"]


def test_two_runs_by_paired_bootstrap(taught, run, capsys):
    other = shutil.copytree(run, run.parent / "other")
    assert taught.run("score", str(run), "test", "--against", str(other)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "paired bootstrap" in lines[2]
    assert lines[3].startswith("BLEU") and "difference +0.00  p = 1.0000" in lines[3]
    assert lines[4].startswith("chrF")


def test_runs_of_other_references_are_not_compared(taught, run, capsys, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    tree = yaml.safe_load((other / "config.yaml").read_text())
    tree["data"]["test"] = tree["data"]["dev"]
    (other / "config.yaml").write_text(yaml.safe_dump(tree))
    assert taught.run("score", str(run), "test", "--against", str(other)) == 2
    assert "has other references" in capsys.readouterr().err
    assert not (run / "scores.json").exists()


def test_a_damaged_file_is_told(taught, run, capsys):
    (run / "scores.json").write_text("[")
    assert taught.run("score", str(run), "test") == 2
    assert "scores.json: damaged" in capsys.readouterr().err


def test_a_device_in_its_place_is_not_read(taught, run, capsys):
    (run / "scores.json").symlink_to("/dev/null")
    assert taught.run("score", str(run), "test") == 2
    assert "expected a file, not a device" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_is_scored_all_the_same(
    taught, run, capsys, caplog, monkeypatch
):
    monkeypatch.setattr("fastkd.cli.score.os.access", lambda path, mode: mode != os.W_OK)
    assert taught.run("score", str(run), "test") == 0
    assert "BLEU" in capsys.readouterr().out and not (run / "scores.json").exists()
    assert f"{run}: cannot be written; the scores are not kept there" in caplog.text


def test_two_that_score_at_once_both_keep_theirs(run, monkeypatch):
    """Each reads what is there before it adds its own."""
    read, folder = scores.read_scores, RunFolder.open(run)

    def slowly(run):
        found = read(run)
        time.sleep(0.2)
        return found

    def record(split):
        values = (1.0, 2.0, "signature", "signature")
        record_scores(folder, Entry(split, "best", 4, 5, *values, {}, "pytorch", "float32", "0"))

    monkeypatch.setattr(scores, "read_scores", slowly)
    threads = [threading.Thread(target=record, args=(split,)) for split in ("dev", "test")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry["split"] for entry in entries(run)} == {"dev", "test"}
