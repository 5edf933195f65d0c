"""Models whose head, or whose states before those of the text, are of a form of their own."""

import copy

import pytest
import torch

import fastkd
from fastkd.losses import CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")

from benchmarks.models.tiny import build, inputs_of
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.unwrapped import projection_of
from tests.integrations.versions import skip_refused

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
FORMS = [
    "BlipForConditionalGeneration",  # a part of it tells the head
    "GitForCausalLM",  # images before the words
    "IdeficsForVisionText2Text",  # a head of a class of its own
]


class Doubled(transformers.GitForCausalLM):
    def forward(self, *arguments, **inputs):
        output = super().forward(*arguments, **inputs)
        if output.loss is not None:
            output.loss = 2 * output.loss
        return output


def pair(name):
    skip_refused(name)
    teacher = build(name)
    student = copy.deepcopy(teacher)
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return student, teacher, inputs_of("vision", student)


@pytest.mark.parametrize("name", FORMS)
def test_value_and_gradients_are_the_models_own(name):
    student, _, inputs = pair(name)
    student.requires_grad_(True)
    own = student(**inputs).loss
    learned = dict(student.named_parameters())
    expected = torch.autograd.grad(own, list(learned.values()), allow_unused=True)
    loss = Distillation(student, [PLAIN])(student, inputs).loss
    torch.testing.assert_close(loss, own)
    found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    for name, ours, theirs in zip(learned, found, expected, strict=True):
        if theirs is None or ours is None:
            assert theirs is None or not theirs.any(), name
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", FORMS)
def test_a_teacher_of_the_same_form(name):
    student, teacher, inputs = pair(name)
    distillation = Distillation(student, [PLAIN, WordKD()], teacher)
    components = distillation(student, inputs).components
    labels = inputs["labels"][:, 1:]
    with torch.no_grad():
        logits = [m(**inputs).logits[:, -inputs["labels"].shape[1] :] for m in (student, teacher)]
    p, q = (z[:, :-1].log_softmax(-1)[labels != -100] for z in logits)
    expected = (q.exp() * (q - p)).sum(-1).mean()
    torch.testing.assert_close(components["word_kd"], expected, rtol=1e-4, atol=1e-6)


def test_states_before_the_texts_need_the_judge():
    student, _, inputs = pair("GitForCausalLM")
    with pytest.raises(fastkd.InputError, match=r"\(2, 29\) states for labels \(2, 12\)"):
        Distillation(student, [PLAIN], verify=False)(student, inputs)


def test_states_are_not_cut_before_labels_have_told_that_they_may_be():
    student, _, inputs = pair("GitForCausalLM")
    student.__class__ = Doubled
    distillation = Distillation(student, [PLAIN])
    labels = inputs["labels"]
    assert distillation(student, {**inputs, "labels": torch.full_like(labels, -100)}).loss == 0
    with pytest.raises(fastkd.InputError, match="its own loss of a batch") as refusal:
        distillation(student, inputs)
    assert "verify" not in str(refusal.value)  # without which they would not be cut


def adapted(model):
    peft = pytest.importorskip("peft")
    target = ["query", "q_proj"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return tuned.eval()


@pytest.mark.parametrize("name", FORMS)
def test_adapters_within_and_a_teacher_beside(name):
    student, teacher, inputs = pair(name)
    student = adapted(student)
    loss, components = Distillation(student, [PLAIN, WordKD()], teacher)(student, inputs)
    torch.testing.assert_close(components["cross_entropy"], student(**inputs).loss.detach())
    loss.backward()
    found = [p.grad for name, p in student.named_parameters() if "lora_B" in name]
    assert any(gradient is not None and gradient.any() for gradient in found)


@pytest.mark.parametrize("name", FORMS)
def test_what_compiles_a_model_hides_nothing(name):
    student, _, _ = pair(name)
    compiled = torch.compile(student)
    assert projection_of(compiled) is projection_of(student)
    assert projection_of(torch.compile(adapted(student))) is projection_of(student)
