"""Weights that are read while a run is trained."""

import errno
import os

import pytest
import torch

from fastkd.errors import InputError
from fastkd.reading import sha256_of
from fastkd.runs import checkpoint, folder
from fastkd.runs.checkpoint import write_checkpoint
from fastkd.runs.folder import MODEL, OBJECTIVE, RunFolder


def average(run, update):
    tensors = {"weight": torch.full((3,), float(update))}
    write_checkpoint(run.path / "average", {MODEL: tensors}, {"update": update})


@pytest.mark.parametrize(
    ("module", "step"),
    [(folder, "read_meta"), (folder, "read_group"), (checkpoint, "read_tensors")],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_meta_and_tensors_are_of_one_file(tmp_path, monkeypatch, module, step, place):
    """However far the reading was as the folder was replaced."""
    run, whole, calls = RunFolder(tmp_path), getattr(module, step), []
    average(run, 1)

    def replaced_meanwhile(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1 and place == "before":
            average(run, 2)
        found = whole(*arguments, **options)
        if len(calls) == 1 and place == "after":
            average(run, 2)
        return found

    monkeypatch.setattr(module, step, replaced_meanwhile)
    weights = run.read_weights("average")
    assert weights.tensors["weight"].unique().tolist() == [weights.meta["update"]]
    average(run, weights.meta["update"])
    assert weights.sha256 == run.read_weights("average").sha256


def test_the_hash_is_that_of_the_file(tmp_path):
    run = RunFolder(tmp_path)
    groups = {group: {group: torch.ones(2)} for group in (MODEL, OBJECTIVE)}
    write_checkpoint(run.path / "average", groups, {})
    for group in groups:
        file = tmp_path / "average" / f"{group}.safetensors"
        assert run.read_weights("average", group).sha256 == sha256_of(file)


def test_groups_are_of_one_checkpoint(tmp_path, monkeypatch):
    """Also where the run is trained on between one file and the next."""
    run, whole, calls = RunFolder(tmp_path), folder.read_group, []

    def save(update):
        groups = {name: {"weight": torch.full((3,), float(update))} for name in (MODEL, OBJECTIVE)}
        write_checkpoint(run.checkpoint(update), groups, {"best_update": update})

    def trained_meanwhile(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            save(2)
        return whole(*arguments, **options)

    save(1)
    monkeypatch.setattr(folder, "read_group", trained_meanwhile)
    read = run.read_groups("best", (MODEL, OBJECTIVE))
    assert {name: weights.tensors["weight"][0].item() for name, weights in read.items()} == {
        MODEL: 1.0,
        OBJECTIVE: 1.0,
    }


@pytest.mark.parametrize("reads", ["sha256_of", "read_text"])
def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch, reads):
    """It may be whole, and training on from the one before would replace it."""
    run, read = RunFolder(tmp_path), getattr(checkpoint, reads)
    for update in (1, 2):
        write_checkpoint(run.checkpoint(update), {MODEL: {"weight": torch.ones(3)}}, {})

    def forbidden(path):
        if path.parent == run.checkpoint(2):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    monkeypatch.setattr(checkpoint, reads, forbidden)
    with pytest.raises(InputError, match=r"00000002/.*: cannot be read: Permission denied"):
        run.newest_whole((MODEL,))
