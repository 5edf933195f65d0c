"""From a corpus to a distilled student's translations, as a user would go."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

LOSSES = {
    "word_kd": [{"name": "cross_entropy", "weight": 0.5}, {"name": "word_kd"}],
    "tie_kd": [{"name": "cross_entropy", "weight": 0.5}, {"name": "tie_kd"}],
    "a2d": [{"name": "cross_entropy"}, {"name": "a2d"}],
    "everything": [
        {"name": "cross_entropy"},
        {"name": "word_kd"},
        {"name": "a2d", "normalization": "mixture"},
        {"name": "tie_kd"},
        {"name": "hidden"},
    ],
}


def weights(folder, update):
    return load_file(folder / "checkpoints" / f"{update:08d}" / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_run_folder_holds_what_it_promises(taught):
    run = taught.folder / "teacher"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "log.jsonl",
        "checkpoints",
        "tokenizer",
        "run.json",
        ".lock",
    }
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    wanted = {"step", "epoch", "loss", "cross_entropy", "lr", "tokens_per_second", "grad_norm"}
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert all(wanted <= record.keys() for record in steps)
    assert [r["step"] for r in records if "dev_bleu" in r] == [2, 4]


def test_a_finished_run_keeps_its_record(taught, tmp_path):
    config = taught.config("recorded", run=str(tmp_path / "run"))
    assert taught.run("train", config) == 0
    before = (tmp_path / "run" / "config.yaml").read_text()
    for change in ("training.optimizer.lr=9", "training.updates=1"):
        assert taught.run("train", config, change) == 0
        assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert taught.run("train", config, "training.updates=5", "training.log_every=2") == 0
    assert "log_every: 2" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_does_not_go_on_with_another_teacher(taught, tmp_path, capsys):
    teacher = taught.folder / "teacher"
    losses = [{"name": "cross_entropy"}, {"name": "word_kd"}]
    run = {"run": str(tmp_path / "run"), "losses": losses}
    config = taught.config("faithful", teacher={"run": str(teacher)}, **run)
    assert taught.run("train", config) == 0
    config = taught.config("faithless", teacher={"run": str(teacher), "checkpoint": "last"}, **run)
    assert taught.run("train", config) == 2
    assert "holds a run with other settings under 'teacher'" in capsys.readouterr().err


@pytest.mark.parametrize("name", LOSSES)
def test_students_train_and_log_each_component(taught, tmp_path, name):
    config = taught.config(
        f"student-{name}",
        run=str(tmp_path / "student"),
        teacher={"run": str(taught.folder / "teacher")},
        losses=LOSSES[name],
    )
    assert taught.run("train", config, "training.updates=2") == 0
    first = json.loads((tmp_path / "student" / "log.jsonl").read_text().splitlines()[0])
    logged = {key.split(".")[0] for key in first}
    assert {loss["name"] for loss in LOSSES[name]} <= logged


def test_translate_keeps_lines_and_score_prints_signatures(taught, tmp_path, capsys):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("ein hund\n\nsieht den\n", encoding="utf-8")
    run = str(shutil.copytree(taught.folder / "teacher", tmp_path / "run"))
    assert taught.run("translate", run, "-i", str(source), "-o", str(output)) == 0
    lines = output.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4 and lines[1] == "" and lines[3] == ""
    capsys.readouterr()
    assert taught.run("score", run, "test") == 0
    out = capsys.readouterr().out
    assert "BLEU" in out and "chrF" in out and "version:" in out and "nrefs:1" in out


def test_average_is_the_mean_of_the_checkpoints(shop):
    config = shop.config("run")
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 0
    assert shop.run("average", str(shop.folder / "run")) == 0
    mean = load_file(shop.folder / "run" / "average" / "model.safetensors")
    parts = [weights(shop.folder / "run", update) for update in (2, 4)]
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2)
    assert shop.run("score", str(shop.folder / "run"), "dev", "--checkpoint", "average") == 0


def test_same_config_and_seed_give_the_same_weights(taught, tmp_path):
    config = taught.config("again", run=str(tmp_path / "again"))
    assert taught.run("train", config) == 0
    assert equal(weights(tmp_path / "again", 4), weights(taught.folder / "teacher", 4))
    other = taught.config("other", run=str(tmp_path / "other"))
    assert taught.run("train", other, "training.seed=2") == 0
    assert not equal(weights(tmp_path / "other", 4), weights(taught.folder / "teacher", 4))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_stopped_run_goes_on_to_the_same_weights(taught, tmp_path, ema):
    losses = LOSSES["everything"]
    configs = [
        taught.config(
            name,
            run=str(tmp_path / name),
            training={"ema": ema, "updates": 4, "save_every": 1},
            teacher={"run": str(taught.folder / "teacher")},
            losses=losses,
        )
        for name in ("straight", "stopped")
    ]
    assert taught.run("train", configs[0]) == 0
    # The optimizer's schedule does not depend on the number of updates, so this is a stop after 3.
    assert taught.run("train", configs[1], "training.updates=3") == 0
    assert taught.run("train", configs[1]) == 0
    straight, stopped = (weights(tmp_path / name, 4) for name in ("straight", "stopped"))
    assert equal(straight, stopped)


def test_accumulation_changes_nothing_but_rounding(taught, tmp_path):
    results = []
    for pieces in (1, 4):
        config = taught.config(f"pieces{pieces}", run=str(tmp_path / str(pieces)))
        arguments = [f"training.accumulation={pieces}", "model.dropout=0.0", "training.updates=2"]
        assert taught.run("train", config, *arguments) == 0
        results.append(weights(tmp_path / str(pieces), 2))
    start = weights(taught.folder / "teacher", 2)
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=0, atol=1e-5)
    assert max((tensor - start[name]).abs().max() for name, tensor in results[0].items()) > 1e-3


def test_damaged_newest_checkpoint_is_passed_over(shop, caplog):
    config = shop.config("run")
    assert shop.run("prepare", config) == 0
    assert shop.run("train", config) == 0
    straight = weights(shop.folder / "run", 4)
    state = shop.folder / "run" / "checkpoints" / "00000004" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    assert shop.run("train", config) == 0
    assert "going back" in caplog.text
    assert equal(weights(shop.folder / "run", 4), straight)
