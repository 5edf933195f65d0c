"""Two stages of training in one config, and in two runs."""

import json

import pytest
import torch

from fastkd.runs import folder
from fastkd.runs.checkpoint import write_checkpoint
from fastkd.runs.folder import MODEL, OBJECTIVE, RunFolder
from fastkd.train.heads import read
from fastkd.train.log import read_log
from tests.cli.conftest import checkpoint

PASSES = {"value": 2, "begin": 2}
STAGES = [
    {"name": "cross_entropy", "weight": 0.5},
    {"name": "tie_kd", "rank_weight": {"value": 1, "begin": 2}, "iterations": PASSES},
    {"name": "a2d", "weight": {"value": 1, "begin": 2}},
]


def steps_of(folder):
    """What was logged of each update."""
    records = [json.loads(line) for line in (folder / "log.jsonl").open()]
    return [record for record in records if "loss" in record]


def trained(taught, folder, name, losses, updates=(4,), **changes):
    """The run's folder after calls with these numbers of updates."""
    teacher = {"run": str(taught.folder / "teacher")}
    config = taught.config(name, run=str(folder / name), teacher=teacher, losses=losses, **changes)
    for count in updates:
        assert taught.run("train", config, f"training.updates={count}") == 0
    return folder / name


def assert_equal_weights(one, other):
    ours, theirs = checkpoint(one, 4), checkpoint(other, 4)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_values_are_logged_and_a_resume_goes_on_with_them(taught, tmp_path):
    whole = trained(taught, tmp_path, "whole", STAGES)
    cut = trained(taught, tmp_path, "cut", STAGES, (1, 3, 4))
    for run in (whole, cut):
        steps = steps_of(run)
        assert [record["tie_kd.iterations"] for record in steps] == [1, 1, 2, 2]
        assert [record["tie_kd.rank_weight"] for record in steps] == [0, 0, 1, 1]
        assert [record["a2d.weight"] for record in steps] == [0, 0, 1, 1]
        assert ["ranking" in record for record in steps] == [False, False, True, True]
    assert_equal_weights(whole, cut)


RAMP = {"value": 0.8, "begin": 1, "ramp": 2, "decay": 0.5, "before": 0.2}


def test_a_ramp_and_a_decay_at_every_update_and_after_a_resume(taught, tmp_path):
    losses = [
        {"name": "cross_entropy", "weight": {"value": 1.0, "end": 3, "after": 0.5}},
        {"name": "word_kd", "weight": RAMP},
        {"name": "a2d", "weight": {"value": 1, "begin": 1, "decay": 0.5, "by": "epoch"}},
    ]
    whole = trained(taught, tmp_path, "whole", losses)
    cut = trained(taught, tmp_path, "cut", losses, (2, 3, 4))
    for run in (whole, cut):
        steps = steps_of(run)
        assert [record["word_kd.weight"] for record in steps] == pytest.approx([0.2, 0.5, 0.8, 0.4])
        assert [record["cross_entropy.weight"] for record in steps] == [1, 1, 1, 0.5]
        expected = {1: 0, 2: 1, 3: 0.5, 4: 0.25}
        assert [r["a2d.weight"] for r in steps] == [expected[r["epoch"]] for r in steps]
    assert_equal_weights(whole, cut)


def test_two_stages_are_one_at_weight_0(taught, tmp_path):
    """A second stage that has not begun changes no bit, whatever it would be."""
    late = {"value": 1, "begin": 4}
    staged = [
        {"name": "cross_entropy", "weight": 0.5},
        {"name": "tie_kd", "rank_weight": late, "iterations": {"value": 3, "begin": 4}},
    ]
    one = [
        {"name": "cross_entropy", "weight": 0.5},
        {"name": "tie_kd", "rank_weight": 0, "iterations": 1},
    ]
    word_kd = [{"name": "cross_entropy", "weight": 0.5}, {"name": "word_kd", "weight": 0.5}]
    staged, one, word_kd = (
        trained(taught, tmp_path, name, losses)
        for name, losses in (("staged", staged), ("one", one), ("word_kd", word_kd))
    )
    assert_equal_weights(staged, one)
    assert_equal_weights(staged, word_kd)


def test_the_mix_of_heads_is_logged_and_drawn(taught, tmp_path, capsys):
    folder = trained(
        taught, tmp_path, "mixed", [{"name": "cross_entropy"}, {"name": "a2d"}], (3, 4)
    )
    picture = tmp_path / "heads.png"
    assert taught.run("heads", str(folder), "-o", str(picture)) == 0
    header = capsys.readouterr().out.splitlines()[1].split()
    assert header[-3:] == ["2", "3", "4"]
    assert picture.stat().st_size > 0
    learned = {
        name.split(".")[-2]: tensor.softmax(1)
        for name, tensor in checkpoint(folder, 4).items()
        if name.startswith("objective ") and name.endswith(".weight")
    }
    last = read(read_log(folder / "log.jsonl"))[4]
    assert last.keys() == learned.keys() == {"encoder", "decoder", "cross"}
    for kind, mix in learned.items():
        torch.testing.assert_close(last[kind], mix, rtol=0, atol=5.01e-5)
    assert taught.run("heads", str(taught.folder / "teacher")) == 2
    assert "tells of no mix of heads" in capsys.readouterr().err


def test_the_mix_of_heads_without_the_teachers_folder(taught, tmp_path, capsys):
    """Which only logs of before need."""
    losses = [{"name": "cross_entropy"}, {"name": "a2d"}]
    folder = trained(taught, tmp_path, "mixed", losses, (2,))
    assert taught.run("heads", str(folder)) == 0
    known = capsys.readouterr().out
    config, log = folder / "config.yaml", folder / "log.jsonl"
    teacher = str(taught.folder / "teacher")
    config.write_text(config.read_text().replace(f"run: {teacher}\n", "run: gone\n"))
    assert taught.run("heads", str(folder)) == 0
    assert capsys.readouterr().out == known
    page = tmp_path / "page.html"
    assert taught.run("compare", str(folder), "--samples", "0", "-o", str(page)) == 0
    assert "teacher head" in page.read_text()
    capsys.readouterr()
    told = log.read_text()
    log.write_text(told.replace(', "teacher_heads": 2', ', "teacher_heads": 5'))
    assert taught.run("heads", str(folder)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{log}: damaged, or of other models" in line
    assert taught.run("compare", str(folder), "--samples", "0", "-o", str(page)) == 0
    assert "teacher head" not in page.read_text()
    capsys.readouterr()
    log.write_text(told.replace(', "teacher_heads": 2', ""))
    assert taught.run("heads", str(folder)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{config}: teacher.run: expected the teacher's run, whose config.yaml tells" in line
    assert "; gone: no such run" in line


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
