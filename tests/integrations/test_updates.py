"""Training by one's own loop, Transformers and Lightning: all arrive at the same weights."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastkd
from fastkd.terms.alignment import DEFAULT_WEIGHTS

transformers = pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("accelerate")
pytest.importorskip("lightning")

from tests.integrations import updates

ROOT = Path(__file__).parents[2]


def assert_same_weights(student, expected):
    found = student if isinstance(student, dict) else dict(student.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def expected():
    """After updates that were not cut, by one process."""
    before = dict(updates.models()[1].named_parameters())
    after = {name: p.detach() for name, p in updates.own_loop(1).named_parameters()}
    assert max((after[name] - before[name]).abs().max() for name in after) > 1e-3
    return after


def test_own_loop_with_accumulation(expected):
    assert_same_weights(updates.own_loop(2), expected)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_transformers(tmp_path, expected, accumulation):
    trainer = updates.by_transformers(accumulation, tmp_path)
    trainer.train()
    assert_same_weights(trainer.model, expected)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    for entry in logs:
        parts = 0.5 * (entry["cross_entropy"] + entry["tie_kd"] + entry["ranking"])
        aligned = entry["a2d.encoder"] + 0.5 * (entry["a2d.decoder"] + entry["a2d.cross"])
        assert entry["loss"] == pytest.approx(parts + DEFAULT_WEIGHTS["row"] * aligned, rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_lightning(tmp_path, expected, accumulation):
    student, trainer = updates.by_lightning(accumulation, tmp_path)
    assert_same_weights(student, expected)
    figures = trainer.callback_metrics
    parts = 0.5 * (figures["cross_entropy"] + figures["tie_kd"] + figures["ranking"])
    aligned = figures["a2d.encoder"] + 0.5 * (figures["a2d.decoder"] + figures["a2d.cross"])
    torch.testing.assert_close(
        figures["loss"], parts + DEFAULT_WEIGHTS["row"] * aligned, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_two_processes(tmp_path, expected):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = ["--master-port", str(20000 + os.getpid() % 20000)]
    command = [*launcher, *port, "-m", "tests.integrations.updates", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = updates.by_transformers(1, tmp_path / "alone")
    alone.train()
    for way in ("own", "transformers", "lightning"):
        assert_same_weights(load_file(tmp_path / f"{way}.safetensors"), expected)
    for one, other in zip(
        torch.load(tmp_path / "log.pt")[:2], alone.state.log_history[:2], strict=True
    ):
        for name in ("loss", "cross_entropy", "tie_kd", "a2d.cross"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_resuming_and_saved_models(tmp_path, expected):
    first = updates.by_transformers(2, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    first.train()
    again = updates.by_transformers(2, tmp_path)
    for parameter in [*again.model.parameters(), *again.distillation.parameters()]:
        parameter.data.mul_(0.5 if parameter.requires_grad else 1.0)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(again.model, expected)
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert not [name for name in saved if "distillation" in name]
    _, report = transformers.MarianMTModel.from_pretrained(
        tmp_path / "checkpoint-2", output_loading_info=True
    )
    assert not report["unexpected_keys"] and not report["missing_keys"]
    assert not hasattr(again.model, "fastkd_distillation")


def test_evaluation_is_the_models_own(tmp_path):
    trainer = updates.by_transformers(1, tmp_path)
    batch = updates.collate(updates.pairs()[:8])
    trainer.eval_dataset = updates.pairs()[:8]
    expected = trainer.model.eval()(**batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("setting", [{"label_smoothing_factor": 0.1}])
def test_settings_that_would_be_ignored_are_refused(tmp_path, setting):
    with pytest.raises(fastkd.InputError, match=next(iter(setting))):
        updates.by_transformers(1, tmp_path, **setting)


def test_lightning_refuses_batches_that_do_not_know_their_update(tmp_path):
    import lightning

    from fastkd.integrations.lightning import DistillationModule

    teacher, student = updates.models()
    module = DistillationModule(student, updates.LOSSES, teacher, optimizer=updates.optimizer_of)
    loader = torch.utils.data.DataLoader(updates.pairs(), 2, collate_fn=updates.collate)
    trainer = lightning.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=2,
        logger=False,
        max_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=str(tmp_path),
    )
    with pytest.raises(fastkd.InputError, match="CountedLoader"):
        trainer.fit(module, loader)


def test_columns_stand_for_the_teacher(tmp_path):
    """A teacher asked beforehand trains the student to the same weights, in either trainer."""
    by_model = updates.by_transformers(2, tmp_path / "model", losses=updates.TOKEN_LOSSES)
    by_model.train()
    expected = {name: p.detach() for name, p in by_model.model.named_parameters()}
    by_columns = updates.by_transformers(2, tmp_path / "columns", columns=True)
    by_columns.train()
    assert_same_weights(by_columns.model, expected)
    assert_same_weights(updates.by_lightning(2, tmp_path, columns=True)[0], expected)


def test_other_versions_of_lightning_are_refused_at_import(monkeypatch):
    import lightning

    monkeypatch.setattr(lightning, "__version__", "2.3.3")
    specification = importlib.util.find_spec("fastkd.integrations.lightning")
    with pytest.raises(ImportError, match=r"needs Lightning 2\.4 to 2\.x, not 2\.3\.3"):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
