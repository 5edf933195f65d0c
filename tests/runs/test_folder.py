"""Weights that are read while a run is trained."""

import pytest
import torch

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
