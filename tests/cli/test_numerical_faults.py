"""Losses that are not finite."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastkd.methods.objective import Objective
from fastkd.train.validation import Validation
from tests.cli.conftest import MODEL


@pytest.fixture
def faulty(monkeypatch):
    """Makes the objective's loss NaN in the updates of a set."""
    updates: set[int] = set()
    forward, calls = Objective.forward, [0]

    def broken(self, *arguments):
        loss, components = forward(self, *arguments)
        calls[0] += 1
        if calls[0] in updates:
            return loss * torch.nan, {**components, "cross_entropy": loss.detach() * torch.nan}
        return loss, components

    monkeypatch.setattr(Objective, "forward", broken)
    return updates


def test_a_bad_update_is_skipped_and_told(taught, tmp_path, faulty, caplog):
    faulty.add(2)
    config = taught.config("run", run=str(tmp_path / "run"), training={"updates": 3})
    assert taught.run("train", config) == 0
    assert "update 2" in caplog.text and "cross_entropy" in caplog.text
    assert "sentences" in caplog.text and "skipped" in caplog.text
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines if "loss" in line]
    assert all(record.get("loss", 0.0) == record.get("loss", 0.0) for record in records)


def test_too_many_in_a_row_end_the_run(taught, tmp_path, faulty, capsys):
    faulty.update({2, 3})
    config = taught.config("run", run=str(tmp_path / "run"), training={"max_skipped": 2})
    assert taught.run("train", config) == 1
    error = capsys.readouterr().err
    assert "update 3" in error and "cross_entropy" in error and "2 such updates" in error


def test_bad_updates_apart_do_not_end_the_run(taught, tmp_path, faulty):
    faulty.update({1, 3})
    config = taught.config("run", run=str(tmp_path / "run"), training={"max_skipped": 2})
    assert taught.run("train", config) == 0


def test_weights_that_overflow_are_never_saved(taught, tmp_path, caplog, capsys):
    """At 0.1: NaN in every checkpoint that is kept, and status 0."""
    folder = tmp_path / "run"
    rates = {"lr": 1e3, "weight_decay": 1e6, "warmup": 1}
    settings = {"updates": 20, "save_every": 1, "validate_every": 100, "max_skipped": 3,
                "keep_last": 2, "optimizer": rates}  # fmt: skip
    config = taught.config("run", run=str(folder), training=settings)
    assert taught.run("train", config) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    named = re.search(r"such updates in a row; go back to (\S+)", line)
    assert named and json.loads(Path(named[1], "meta.json").read_text())["skipped"] == 0
    for file in folder.glob("checkpoints/*/*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(file).values()), file


def test_good_checkpoints_stay_where_some_weights_become_nan(taught, tmp_path, capsys):
    """At 0.1: pieces that no batch has become NaN, the loss stays finite, and all good ones go."""
    apart = {**MODEL, "share_embeddings": False, "tie_output": False}
    settings = {"updates": 4, "save_every": 1, "keep_last": 2, "max_skipped": 2}
    config = taught.config("run", run=str(tmp_path / "run"), model=apart, training=settings)
    assert taught.run("train", config) == 0
    goes_on = ["training.updates=9", "training.optimizer.eps=1e-50"]
    assert taught.run("train", config, *goes_on) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the new weights not finite" in line and line.endswith("checkpoints/00000004")
    files = list(tmp_path.glob("run/checkpoints/*/*.safetensors"))
    assert files
    for file in files:
        assert all(t.isfinite().all() for t in load_file(file).values()), file


def test_the_log_is_json_whatever_the_numbers_are(taught, tmp_path, monkeypatch):
    def nothing_finite(*arguments, **options):
        return Validation(math.nan, None)

    monkeypatch.setattr("fastkd.train.trainer.validate", nothing_finite)
    config = taught.config("run", run=str(tmp_path / "run"), training={"updates": 2})
    assert taught.run("train", config) == 0

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert {"dev_loss": None}.items() <= records[-1].items()
    assert all(record["time"] > 1e9 for record in records)
