"""Batches without padding, whose rows lie one after the other."""

import pytest
import torch

import fastkd
from fastkd.losses import CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations import distillation as module
from fastkd.integrations.counts import REFUSED
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.models import LanguageModel
from fastkd.integrations.teacher_columns import teacher_columns
from tests.integrations.families import ONE_STACK, build

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
LORA = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def adapted(implementation, **more):
    peft = pytest.importorskip("peft")
    model = build("llama", implementation)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA, **more)).eval()


def with_images(implementation):
    """A model that hands `use_cache` on without naming it."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**ONE_STACK),
        image_token_index=2,
    )
    model = transformers.LlavaForConditionalGeneration._from_config(
        config, attn_implementation=implementation
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


MODELS = {
    "llama": lambda implementation: build("llama", implementation),
    "qwen2": lambda implementation: build("qwen2", implementation),
    "LoRA": lambda implementation: adapted(implementation, task_type="CAUSAL_LM"),
    "LoRA of no task": adapted,
    "images and text": with_images,
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_a_flattened_batch_is_its_rows_apart(name, implementation):
    """With a new cache Transformers lets packed rows see each other; without one it does not."""
    teacher, student = MODELS[name](implementation), MODELS[name](implementation)
    torch.manual_seed(5)
    for parameter in student.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    rows = [list(range(3, 3 + n)) for n in (5, 7, 3)]
    flat = transformers.DataCollatorWithFlattening()([{"input_ids": row} for row in rows])
    assert flat["input_ids"].shape == (1, 15) and "attention_mask" not in flat
    ids, labels = torch.zeros(3, 7).long(), torch.full((3, 7), -100)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = labels[number, : len(row)] = torch.tensor(row)
    apart = {"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels}
    losses = [PLAIN, WordKD()]
    found, expected = (
        Distillation(student, losses, teacher)(student, inputs) for inputs in (flat, apart)
    )
    torch.testing.assert_close(found.components, expected.components)
    own = student(**flat, use_cache=False).loss
    torch.testing.assert_close(own.detach(), found.components["cross_entropy"])
    if implementation == "sdpa":  # or there would be nothing to mend
        assert not torch.allclose(student(**flat).loss, own, rtol=1e-4)


@pytest.fixture
def tuned():
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(build("llama"), config).eval()


def test_prefix_tuning_is_refused_with_a_flattened_batch(tuned):
    """With learned keys in the cache the rows see each other; one row is served."""
    distillation = Distillation(tuned, [PLAIN])
    collate = transformers.DataCollatorWithFlattening()
    rows = [{"input_ids": list(range(3, 3 + n))} for n in (5, 7)]
    for inputs in (collate(rows[:1]), {**collate(rows[:1]), "attention_mask": torch.ones(1, 5)}):
        own = tuned(**inputs).loss
        torch.testing.assert_close(distillation(tuned, inputs).loss, own)
    for more in ({}, {"attention_mask": torch.ones(1, 12)}):
        with pytest.raises(fastkd.InputError, match=r"position_ids: .*PREFIX_TUNING.*LoRA"):
            distillation(tuned, {**collate(rows), **more})
    inputs = collate(rows)
    between = {key: torch.cat([t[:, :5], t[:, :1], t[:, 5:]], 1) for key, t in inputs.items()}
    between["attention_mask"] = (torch.arange(13) != 5).long()[None]
    with pytest.raises(fastkd.InputError, match="position_ids"):
        distillation(tuned, between)
    with pytest.raises(fastkd.InputError, match="position_ids"):
        teacher_columns(tuned, collate(rows), top_k=2)


@pytest.mark.parametrize("side", ["right", "left"])
def test_prefix_tuning_with_positions_of_a_padded_batch(tuned, side):
    """As TRL pads them, and as they are counted where padding is on the left."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    positions = torch.tensor([[0, 1, 2], [0, 1, 0]])
    if side == "left":
        mask = mask.flip(1)
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    inputs["labels"] = ids.masked_fill(mask == 0, -100)
    found = Distillation(tuned, [PLAIN])(tuned, inputs).loss
    torch.testing.assert_close(found, tuned(**inputs).loss)


def test_positions_with_an_axis_more_do_not_tell_rows_apart(tuned):
    positions = torch.tensor([[[0, 0, 1, 1]]] * 3)
    LanguageModel(tuned).refuse_packed({"position_ids": positions})


def test_packed_rows_of_a_kind_that_was_met_count_as_refused(tuned, monkeypatch):
    """Or the one process would raise in its pass, and the others wait for it."""
    told = []
    monkeypatch.setattr(module, "several_processes", lambda: True)
    monkeypatch.setattr(module, "tell", told.append)
    distillation = Distillation(tuned, [PLAIN])
    collate = transformers.DataCollatorWithFlattening()
    one, several = ([{"input_ids": [3, 4, 5]}] * n for n in (1, 2))
    assert distillation.counts([collate(one)])[REFUSED] == 0
    assert distillation.counts([collate(one), collate(several)])[REFUSED] == 1
    assert len(told) == 1 and told[0].startswith("position_ids: ")
