"""Heads that adapters change, and heads of frozen teachers that show no weight."""

import copy

import pytest
import torch

import fastkd
from fastkd.losses import A2D, CrossEntropy, HiddenStates, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from fastkd.integrations.distillation import Distillation
from tests.integrations.families import build, labelled, teacher_and_student

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
LORA = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
HEADS = {
    "LoRA": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA with a bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "LoRA of a rank's root": {"target_modules": ["lm_head"], "use_rslora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens of a tied head": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [4, 5]},
    },
}


def adapted(head, tied=False, **changes):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    model = build("llama", tie_word_embeddings=tied or "tied" in head)
    return peft.get_peft_model(model, peft.LoraConfig(**{**LORA, **HEADS[head], **changes})).eval()


@pytest.mark.parametrize("head", HEADS)
def test_heads_that_adapters_change(head):
    """Value and gradients are those of the model's own loss."""
    model, inputs = adapted(head), labelled("llama")
    for name, parameter in model.named_parameters():  # saved copies and tokens that differ
        if parameter.requires_grad and "lora" not in name:
            parameter.data.add_(0.3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = torch.autograd.grad(model(**inputs).loss, list(trained.values()))
    loss, _ = Distillation(model, [PLAIN])(model, inputs)
    torch.testing.assert_close(loss, model(**inputs).loss)
    ours = torch.autograd.grad(loss, list(trained.values()))
    for found, expected in zip(ours, own, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head", ["LoRA", "saved"])
def test_every_loss_over_an_adapted_head(head):
    student, teacher, inputs = adapted(head), build("llama"), labelled("llama")
    losses = [PLAIN, WordKD(), A2D(), HiddenStates()]
    loss, components = Distillation(student, losses, teacher)(student, inputs)
    counted = inputs["labels"][:, 1:] != -100
    p, q = (model(**inputs).logits[:, :-1].log_softmax(-1) for model in (student, teacher))
    expected = (q.exp() * (q - p)).sum(-1)[counted].mean()
    torch.testing.assert_close(components["word_kd"], expected.detach())
    loss.backward()


@pytest.mark.parametrize("head", ["LoRA", "saved"])
def test_adapters_that_are_off(head):
    model, inputs = adapted(head), labelled("llama")
    distillation = Distillation(model, [PLAIN])
    on = distillation(model, inputs)[0]
    with model.disable_adapter():
        loss, _ = distillation(model, inputs)
        torch.testing.assert_close(loss, model(**inputs).loss)
        assert abs(loss - on) > 1e-3


def test_dropout_of_an_adapter_on_the_head():
    """With the same draw as the layer itself would make."""
    model, inputs = adapted("LoRA", lora_dropout=0.5, target_modules=["lm_head"]), labelled("llama")
    distillation = Distillation(model, [PLAIN])
    distillation.counts([inputs])
    model.train()
    torch.manual_seed(0)
    loss, _ = distillation(model, inputs)
    head = model.get_output_embeddings()
    hidden = model.base_model.model.model(**{k: v for k, v in inputs.items() if k != "labels"})[0]
    torch.manual_seed(0)
    expected = torch.nn.functional.cross_entropy(
        head(hidden[:, :-1]).mT, inputs["labels"][:, 1:], ignore_index=-100
    )
    torch.testing.assert_close(loss, expected)


def test_merged_adapters_are_the_weight():
    model, inputs = adapted("LoRA"), labelled("llama")
    expected = model(**inputs).loss
    model.merge_adapter()
    torch.testing.assert_close(Distillation(model, [PLAIN])(model, inputs)[0], expected)


def test_an_adapter_of_another_form_is_refused():
    peft = pytest.importorskip("peft")
    model = adapted("LoRA", use_dora=True)
    with pytest.raises(fastkd.InputError, match=r"LoRA or modules_to_save may adapt.*Linear"):
        Distillation(model, [PLAIN])
    other = peft.get_peft_model(
        build("llama"),
        peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[], task_type="CAUSAL_LM"),
    )
    with pytest.raises(fastkd.InputError, match="LoRA or modules_to_save may adapt"):
        Distillation(other, [PLAIN])


class WeightOnly(torch.nn.Module):
    """A linear layer whose weight is kept as int8."""

    def __init__(self, linear):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.scale = torch.nn.Buffer(linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.kept = torch.nn.Buffer((linear.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, states):
        return torch.nn.functional.linear(states, self.kept.to(states.dtype) * self.scale)


class Dynamic(WeightOnly):
    """One that rounds what enters it too."""

    def forward(self, states):
        scale = states.abs().amax(-1, keepdim=True) / 7
        return super().forward((states / scale).round() * scale)


def test_a_quantised_head_of_a_frozen_teacher():
    teacher, student = teacher_and_student("llama")
    teacher.lm_head = WeightOnly(teacher.lm_head)
    inputs = labelled("llama")
    _, components = Distillation(student, [WordKD()], teacher)(student, inputs)
    counted = inputs["labels"][:, 1:] != -100
    p, q = (model(**inputs).logits[:, :-1].log_softmax(-1) for model in (student, teacher))
    expected = (q.exp() * (q - p)).sum(-1)[counted].mean()
    torch.testing.assert_close(components["word_kd"], expected.detach())


def test_heads_that_are_not_linear_or_have_to_train_are_refused():
    teacher, student = teacher_and_student("llama")
    inputs = labelled("llama")
    quantised = copy.deepcopy(teacher)
    quantised.lm_head = Dynamic(teacher.lm_head)
    with pytest.raises(fastkd.InputError, match="expected ones whose weight alone is quantised"):
        Distillation(student, [WordKD()], quantised)(student, inputs)
    student.lm_head = WeightOnly(student.lm_head)
    with pytest.raises(fastkd.InputError, match="WeightOnly"):
        Distillation(student, [PLAIN])


def test_an_offloaded_head_of_a_teacher():
    accelerate = pytest.importorskip("accelerate")
    teacher, student = teacher_and_student("llama")
    inputs = labelled("llama")
    expected, _ = Distillation(student, [WordKD()], teacher)(student, inputs)
    offloaded = accelerate.cpu_offload(copy.deepcopy(teacher), execution_device="cpu")
    assert offloaded.lm_head.weight.is_meta
    found, _ = Distillation(student, [WordKD()], offloaded)(student, inputs)
    torch.testing.assert_close(found, expected)
