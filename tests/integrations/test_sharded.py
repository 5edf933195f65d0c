"""Models divided by FSDP2: several processes compute what one does, however the models are cut."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.together import together

pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("peft")

# Sums of other orders, over two updates; in bfloat16 each process rounds its gradients.
BOUND = {"float32": 1e-4, "bfloat16": 8 * torch.finfo(torch.bfloat16).eps, "weights": 1e-12}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_compute_what_one_does(tmp_path, processes):
    """All layouts × losses × tied or not: losses, gradients, their norms and saved files."""
    together(processes, "tests.integrations.sharded", str(tmp_path), timeout=900)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) >= 89
    wrong = {
        name: values
        for name, values in found.items()
        if not all(
            isinstance(value, float)
            and value < BOUND[next((k for k in BOUND if k in name), "float32")]
            for value in values
        )
    }
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
def test_transformers_trainer(tmp_path):
    """Weights, what is learned beside them, logs, files, and going on from a checkpoint."""
    pytest.importorskip("accelerate")
    from tests.integrations.sharded_trainer import TIED, trainer

    together(2, "tests.integrations.sharded_trainer", str(tmp_path), timeout=400)
    tied = trainer(tmp_path / "tied_alone", 1, **TIED)
    tied.train()
    tied.save_model(str(tmp_path / "expected_tied"))
    for name in ("model.safetensors", "fastkd_distillation.safetensors"):
        expected, found = (load_file(tmp_path / f / name) for f in ("expected_tied", "saved_tied"))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
    alone = trainer(tmp_path / "alone", 1)
    before = {name: p.detach().clone() for name, p in alone.model.named_parameters()}
    alone.train()
    alone.save_model(str(tmp_path / "expected"))
    for name in ("model.safetensors", "fastkd_distillation.safetensors"):
        expected = load_file(tmp_path / "expected" / name)
        for folder in ("saved", "resumed", "whole/checkpoint-4", "from_parts"):
            found = load_file(tmp_path / folder / name)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
                if key in before:
                    assert (tensor - before[key]).abs().max() > 1e-2
    logs = torch.load(tmp_path / "log.pt", weights_only=False)
    for log, told in zip(logs[:4], alone.state.log_history[:4], strict=True):
        assert log.keys() == told.keys()
        for key in log.keys() - {"step", "epoch", "learning_rate"}:
            assert log[key] == pytest.approx(told[key], rel=1e-3, abs=1e-6), key


def test_deepspeed_is_refused_in_favour_of_fsdp2(tmp_path):
    pytest.importorskip("accelerate")
    from fastkd import InputError
    from tests.integrations.sharded_trainer import trainer

    made = trainer(tmp_path, 1)
    made.is_deepspeed_enabled = True
    with pytest.raises(InputError, match="deepspeed: expected FSDP2"):
        made._refuse_what_would_be_ignored()


@pytest.mark.slow
def test_lightning_and_accelerate(tmp_path):
    pytest.importorskip("lightning")
    pytest.importorskip("accelerate")
    from tests.integrations import sharded_lightning

    together(2, "tests.integrations.sharded_lightning", str(tmp_path), timeout=400)
    found = torch.load(tmp_path / "weights.pt")
    mixed = found.pop("accelerate_bf16")
    expected = {
        "lightning": sharded_lightning.lightning_weights(1, tmp_path),
        "accelerate": sharded_lightning.accelerate_weights(1),
        "accelerate_tied": sharded_lightning.accelerate_weights(1, "marian", tied=True),
    }
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert found[name].keys() == weights.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(found[name][key], tensor, rtol=1e-3, atol=1e-5, msg=key)
    start = sharded_lightning.begun("llama", True, "bf16").float().state_dict()
    for key, tensor in sharded_lightning.accelerate_weights(1, tied=True, precision="bf16").items():
        moved = (tensor - start[key]).abs().max()
        apart = (mixed[key] - tensor).abs().max()
        assert moved > 0 and apart <= 2 * BOUND["bfloat16"] * moved, key


def test_parameters_that_zero_3_has_emptied_are_refused_in_favour_of_fsdp2():
    from fastkd import InputError
    from fastkd.integrations.distillation import Distillation
    from fastkd.losses import CrossEntropy
    from tests.integrations.sharded import Case, made

    student = made(Case("llama", "", "word_kd"), 1)
    student.lm_head.weight.ds_id = 0  # by which DeepSpeed knows them
    with pytest.raises(InputError, match="ZeRO-3; expected FSDP2"):
        Distillation(student, [CrossEntropy()])
