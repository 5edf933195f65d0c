"""Losses that are not finite."""

import json

import pytest
import torch

from fastkd.methods.objective import Objective


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
