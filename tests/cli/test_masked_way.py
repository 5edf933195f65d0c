"""From a corpus to a one-pass student's translations, as a user would go."""

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import CMLM
from tests.cli.logs import assert_same_log, log
from tests.cli.torchrun import train

DIMS = [
    {"name": "dims", "ema": 0.9},
    {"name": "length"},
    {"name": "a2d", "normalization": "mixture"},
]


def student(shop, tmp_path, name="student", **changes):
    return shop.config(
        name,
        run=str(tmp_path / name),
        model={**CMLM, **changes.pop("model", {})},
        teacher={"run": str(shop.folder / "masked"), "checkpoint": "last"},
        training={"backend": "reference"},
        **{"losses": DIMS, **changes},
    )


def tensors(folder, update, group="model"):
    return load_file(folder / "checkpoints" / f"{update:08d}" / f"{group}.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_masked_training_logs_its_losses_and_bleu(masked):
    logged = log(masked.folder / "masked")
    assert {"masked_cross_entropy", "length", "loss"} <= logged[0].keys()
    assert [r["step"] for r in logged if "dev_bleu" in r] == [2, 4]


def test_a_stopped_student_goes_on_to_the_same_weights_and_teacher(masked, tmp_path):
    whole = student(masked, tmp_path, "whole")
    assert masked.run("train", whole) == 0
    halves = student(masked, tmp_path, "halves")
    assert masked.run("train", halves, "training.updates=2") == 0
    assert masked.run("train", halves) == 0
    for group in ("model", "objective", "state"):
        assert equal(tensors(tmp_path / "whole", 4, group), tensors(tmp_path / "halves", 4, group))
    state = tensors(tmp_path / "whole", 4, "state")
    start = tensors(masked.folder / "masked", 4)
    moved = [n for n, t in start.items() if not torch.equal(state[f"objective.teacher.{n}"], t)]
    assert len(moved) > len(start) / 2
    assert {"dims", "dims.hidden", "length", "a2d.decoder"} <= log(tmp_path / "whole")[0].keys()


def test_students_start_from_their_teacher_and_can_teach_on(masked, tmp_path):
    """A learning rate of nearly nothing shows where a run begins."""
    rate = "training.optimizer.lr=1e-12"
    first = student(masked, tmp_path, "first")
    assert masked.run("train", first, rate, "training.updates=1") == 0
    torch.testing.assert_close(tensors(tmp_path / "first", 1), tensors(masked.folder / "masked", 4))
    assert masked.run("train", first, "training.updates=3") == 0
    second = student(
        masked, tmp_path, "second", losses=[{"name": "dims", "steps": 4, "mask": "full", "ema": 0}]
    )
    teacher = f"teacher.run={tmp_path / 'first'}"
    assert masked.run("train", second, teacher, rate) == 0
    torch.testing.assert_close(tensors(tmp_path / "second", 4), tensors(tmp_path / "first", 3))


def test_a_masked_model_can_begin_as_an_autoregressive_one(masked, tmp_path, capsys):
    begun = masked.config(
        "begun",
        run=str(tmp_path / "begun"),
        model=CMLM,
        start={"run": str(masked.folder / "teacher"), "checkpoint": "last"},
        losses=[{"name": "masked_cross_entropy"}],
    )
    rate = "training.optimizer.lr=1e-12"
    assert masked.run("train", begun, rate, "training.updates=1") == 0
    found, given = tensors(tmp_path / "begun", 1), tensors(masked.folder / "teacher", 4)
    new = found.keys() - given.keys()
    assert new and all("causal_attention" in n or n == "length.weight" for n in new)
    torch.testing.assert_close({n: t for n, t in found.items() if n in given}, given)
    assert masked.run("train", begun, "run=" + str(tmp_path / "wide"), "model.width=32") == 2
    assert "expected shape" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("passes", ["1", "4"])
def test_translate_and_score_take_the_number_of_passes(masked, tmp_path, capsys, passes):
    run = str(masked.folder / "masked")
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("ein hund\n\nsieht den\n", encoding="utf-8")
    options = ["--passes", passes, "--length-window", "1"]
    assert masked.run("translate", run, "-i", str(source), "-o", str(output), *options) == 0
    lines = output.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4 and lines[1] == "" and lines[3] == ""
    capsys.readouterr()
    assert masked.run("score", run, "test", *options) == 0
    assert "BLEU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "option", "expected"),
    [("masked", "--beam", "passes"), ("teacher", "--passes", "beam")],
)
def test_settings_of_the_other_search(masked, capsys, run, option, expected):
    assert masked.run("score", str(masked.folder / run), "test", option, "2") == 2
    line = capsys.readouterr().err.strip()
    assert option.lstrip("-") in line and f"expected {expected}" in line


def damaged(folder):
    for path in (folder / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("damage", ["weights", "missing", "sizes", "kind"])
def test_a_teacher_that_cannot_be_loaded_ends_the_run(masked, tmp_path, capsys, damage):
    changes = {}
    if damage == "weights":
        teacher = masked.config(
            "broken",
            run=str(tmp_path / "broken"),
            model=CMLM,
            losses=[{"name": "masked_cross_entropy"}],
        )
        assert masked.run("train", teacher, "training.updates=1") == 0
        damaged(tmp_path / "broken")
        changes["teacher.run"] = tmp_path / "broken"
    elif damage == "missing":
        changes["teacher.run"] = tmp_path / "nowhere"
    elif damage == "sizes":
        changes["model.width"] = 32
    else:
        changes["teacher.run"] = masked.folder / "teacher"
    capsys.readouterr()
    overrides = [f"{key}={value}" for key, value in changes.items()]
    assert masked.run("train", student(masked, tmp_path), *overrides) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    expected = {"weights": "damaged", "missing": "nowhere", "sizes": "model.width", "kind": "kind"}
    assert expected[damage] in line
    assert not (tmp_path / "student" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "accumulation", "sharding"), [(4, 1, "none"), (2, 2, "fully_shard")]
)
def test_processes_compute_what_one_does(masked, tmp_path, processes, accumulation, sharding):
    """Masks depend on their place alone, and the teacher follows in each process alike."""
    losses = [*DIMS, {"name": "masked_cross_entropy", "self_correction": 0.3}]
    config = student(masked, tmp_path, "alone", model={"dropout": 0.0}, losses=losses)
    assert masked.run("train", config) == 0
    other = [f"training.accumulation={accumulation}", f"training.sharding={sharding}"]
    train(processes, config, f"run={tmp_path / 'together'}", *other)
    assert_same_log(log(tmp_path / "together"), log(tmp_path / "alone"))
    state = tensors(tmp_path / "together", 4, "state")
    torch.testing.assert_close(state, tensors(tmp_path / "alone", 4, "state"), rtol=1e-4, atol=1e-5)
