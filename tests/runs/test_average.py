"""Averages of checkpoints while the run is trained."""

import shutil

import torch

from fastkd.runs import average
from fastkd.runs.average import average_checkpoints
from fastkd.runs.checkpoint import read_group, write_checkpoint
from fastkd.runs.folder import MODEL, RunFolder


def save(run, update, value):
    write_checkpoint(run.checkpoint(update), {MODEL: {"weight": torch.full((3,), value)}}, {})


def test_the_mean_is_of_one_run(tmp_path, monkeypatch):
    """Not of the one before for one half, where it is begun anew in place between two files."""
    run, whole, calls = RunFolder(tmp_path), average.read_group, []
    for update in (1, 2):
        save(run, update, 1.0)

    def begun_anew(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / "checkpoints")
            for update in (1, 2):
                save(run, update, 5.0)
        return whole(*arguments, **options)

    monkeypatch.setattr(average, "read_group", begun_anew)
    average_checkpoints(run)
    assert read_group(tmp_path / "average", MODEL)["weight"].tolist() == [5.0, 5.0, 5.0]
