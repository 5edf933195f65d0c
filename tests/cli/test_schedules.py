"""Two stages of training in one config, and in two runs."""

import json

import torch

from fastkd.runs import folder
from fastkd.runs.checkpoint import write_checkpoint
from fastkd.runs.folder import MODEL, OBJECTIVE, RunFolder
from tests.cli.conftest import checkpoint

PASSES = {"value": 2, "begin": 2}
STAGES = [
    {"name": "cross_entropy", "weight": 0.5},
    {"name": "tie_kd", "rank_weight": {"value": 1, "begin": 2}, "iterations": PASSES},
    {"name": "a2d", "weight": {"value": 1, "begin": 2}},
]


def test_values_are_logged_and_a_resume_goes_on_with_them(taught, tmp_path):
    teacher = {"run": str(taught.folder / "teacher")}
    whole, cut = (
        taught.config(name, run=str(tmp_path / name), teacher=teacher, losses=STAGES)
        for name in ("whole", "cut")
    )
    assert taught.run("train", whole) == 0
    for updates in (1, 3, 4):
        assert taught.run("train", cut, f"training.updates={updates}") == 0
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    steps = [record for record in records if "loss" in record]
    assert [record["tie_kd.iterations"] for record in steps] == [1, 1, 2, 2]
    assert [record["a2d.weight"] for record in steps] == [0, 0, 1, 1]
    assert ["ranking" in record for record in steps] == [False, False, True, True]
    ours, theirs = (checkpoint(tmp_path / name, 4) for name in ("whole", "cut"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_begins_with_the_mix_of_heads_of_another(taught, tmp_path, capsys):
    teacher = {"run": str(taught.folder / "teacher")}
    losses = [{"name": "cross_entropy"}, {"name": "a2d"}]
    first = taught.config("mixed", run=str(tmp_path / "mixed"), teacher=teacher, losses=losses)
    assert taught.run("train", first) == 0
    start = {"run": str(tmp_path / "mixed"), "checkpoint": "last", "learned": True}
    options = {
        "teacher": teacher,
        "start": start,
        "training": {"updates": 1, "optimizer": {"lr": 1e-9}},
    }
    then = taught.config("then", run=str(tmp_path / "then"), losses=losses, **options)
    assert taught.run("train", then) == 0
    before, after = checkpoint(tmp_path / "mixed", 4), checkpoint(tmp_path / "then", 1)
    mixes = [name for name in before if name.startswith("objective ")]
    assert mixes
    for name in mixes:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)
    other = taught.config("other", run=str(tmp_path / "other"), losses=losses[:1], **options)
    assert taught.run("train", other) == 2
    assert "start.learned: " in capsys.readouterr().err


def test_weights_and_mix_of_heads_begin_as_one_checkpoint(taught, tmp_path, monkeypatch):
    """Also where the other run is trained on between its two files."""
    teacher = {"run": str(taught.folder / "teacher")}
    losses = [{"name": "cross_entropy"}, {"name": "a2d"}]
    first = taught.config("mixing", run=str(tmp_path / "mixing"), teacher=teacher, losses=losses)
    assert taught.run("train", first) == 0
    run, read = RunFolder(tmp_path / "mixing"), folder.read_group
    before = {group: read(run.checkpoint(4), group) for group in (MODEL, OBJECTIVE)}

    def trained_meanwhile(place, group, *arguments, **options):
        found = read(place, group, *arguments, **options)
        if place == run.checkpoint(4) and group == MODEL:
            later = {g: {n: t + 1 for n, t in tensors.items()} for g, tensors in before.items()}
            write_checkpoint(run.checkpoint(5), later, {"update": 5, "best_update": 5})
        return found

    monkeypatch.setattr(folder, "read_group", trained_meanwhile)
    start = {"run": str(run.path), "checkpoint": "last", "learned": True}
    training = {"updates": 1, "optimizer": {"lr": 1e-9}}
    options = {"teacher": teacher, "start": start, "training": training, "losses": losses}
    then = taught.config("mixed too", run=str(tmp_path / "then"), **options)
    assert taught.run("train", then) == 0
    after = checkpoint(tmp_path / "then", 1)
    for group, tensors in before.items():
        for name, tensor in tensors.items():
            found = after[f"{group} {name}"]
            torch.testing.assert_close(found, tensor, rtol=0, atol=1e-7, msg=name)
