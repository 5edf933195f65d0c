"""Run folders, prepared corpora and exported models of version 0.1 load and go on.

`fixtures/0.1/runs.tar.xz` holds what version 0.1.0 (commit cb4a01a) left after four updates of
tiny models on the invented language; `expected.json`, how it translated with them and went on.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastkd.__main__ import main
from fastkd.config.load import load_config
from fastkd.runs.folder import RunFolder
from fastkd.runs.translation import translate_lines

FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1"
UNKNOWN = "⁇"  # as the unknown piece reads
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The folder of old runs, which is also the working directory."""
    shutil.unpack_archive(FIXTURES / "runs.tar.xz", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def translations(run: str | Path, checkpoint: str) -> list[str]:
    return list(translate_lines(RunFolder.open(run), EXPECTED["lines"], checkpoint, "cpu"))


@pytest.mark.parametrize("name", ["teacher", "student", "cmlm", "dims"])
def test_translates(old, name):
    compared = 0
    for checkpoint in ("best", "last"):
        known = EXPECTED["translations"][f"{name} {checkpoint}"]
        for line, expected in zip(translations(name, checkpoint), known, strict=True):
            if UNKNOWN not in expected:  # no model predicts it any more
                assert line == expected
                compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", ["student", "dims"])
def test_averages(old, name):
    assert main(["average", name]) == 0
    assert translations(name, "average") == EXPECTED["translations"][f"{name} average"]


@pytest.mark.parametrize("name", ["student", "dims"])
def test_goes_on_with_the_same_numbers(old, name):
    assert load_config(f"{name}.yaml").losses == RunFolder.open(name).config.losses
    assert main(["train", f"{name}.yaml", "training.updates=8"]) == 0
    lines = (old / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    records = [record for record in records if record["step"] > 4]
    expected = EXPECTED["log"][name]
    assert len(records) == len(expected) == 6  # four updates and two validations
    for record, known in zip(records, expected, strict=True):
        assert {key: record[key] for key in known} == pytest.approx(known, rel=1e-4, abs=1e-5)


def test_exported_models_compute_and_train_on(old):
    """A Marian checkpoint that version 0.1 wrote: the run's logits, and a student to go on with."""
    transformers = pytest.importorskip("transformers", minversion="5.1")
    from fastkd.integrations.distillation import Distillation
    from fastkd.losses import A2D, CrossEntropy, WordKD

    def loaded():
        return transformers.MarianMTModel.from_pretrained("transformers")

    exported, run = loaded().eval(), RunFolder.open("student").load_model("best")
    source, target = torch.tensor([[7, 9, 11, 3]]), torch.tensor([[8, 6, 10, 3]])
    read = torch.cat([torch.full((1, 1), run.pad_id), target[:, :-1]], 1)
    lengths = torch.tensor([4])
    with torch.no_grad():
        output = run(source, lengths, read, lengths)
        ours = F.linear(output.rows, run.output_weight, run.output_bias)
        theirs = exported(input_ids=source, decoder_input_ids=read).logits[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)

    student = loaded()
    losses = [CrossEntropy(), WordKD(), A2D()]
    distillation = Distillation(student, losses, exported, backend="reference")
    parameters = [*student.parameters(), *distillation.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    values = []
    for _ in range(3):
        batch = {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": target}
        loss, _ = distillation(student, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[2] < values[0]


def test_exports_the_same_weights(old):
    pytest.importorskip("transformers", minversion="5.1")
    from safetensors.torch import load_file

    assert main(["export", "student", "--to", "transformers", "again"]) == 0
    before, after = (load_file(old / f / "model.safetensors") for f in ("transformers", "again"))
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
